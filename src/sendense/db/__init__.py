"""The catalog: SQLAlchemy models, sessions, and the migrations that keep a database in step."""
