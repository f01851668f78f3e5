"""`cliniko-pipeline explain`: why a patient is or is not active, and how it was or was not matched to a contact.

The output has ids, instants, kinds, and the names of appointment types and practitioners. It never has the name or
address of a patient or a contact, because a terminal keeps its scrollback.
"""
