"""A simulated Cliniko: several accounts behind one address, served over real HTTP.

It exists so that the pipeline can be tried and tested without a Cliniko account. It shares no code with the
client on purpose: what both imported, both could get wrong together.
"""
