"""Read models in PostgreSQL (psycopg 3): models and positions in one transaction, a table for each generation.

A module of this package that imports psycopg is imported where it is needed only: it comes with `refold[postgres]`.
"""
