"""A simulated Cliniko: several accounts behind one address, served over real HTTP.

The pipeline can be tried and tested with it, without a Cliniko account. It shares no code with the client on purpose:
both would share its mistakes.
"""
