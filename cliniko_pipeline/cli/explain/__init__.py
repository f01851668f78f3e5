"""`cliniko-pipeline explain`: why a patient is active or not, and which contact matches.

The output never contains names or addresses of patients and contacts, because terminals keep what they have shown. The
output contains ids, instants, appointment types and the names of practitioners.
"""
