"""The clinics' Cliniko credentials: what one is, and how it is stored encrypted.

Here belong the credentials' type and the vault. Reading and writing the table that holds them does not
(`postgres`), nor asking Cliniko whether they work (`cliniko`).
"""
