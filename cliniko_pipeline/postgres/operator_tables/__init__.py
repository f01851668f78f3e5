"""The operator's own tables.

Every function runs in an operator's transaction (`Database.operator`) unless it says otherwise.
"""
