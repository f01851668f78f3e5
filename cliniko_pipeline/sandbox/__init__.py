"""A simulated Cliniko, which serves several accounts at one address over real HTTP.

The pipeline can be tried and tested with the sandbox, without a Cliniko account. The sandbox shares no code with the
client, so that a mistake in one of them does not hide in the other.
"""
