"""Measurements that take minutes and gigabytes: no tests, and no part of the package."""
