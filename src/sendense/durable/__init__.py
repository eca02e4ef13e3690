"""Durable execution: programs that go on where they were after a crash. Knows nothing of backup.

The one package that imports DBOS. A worker runs an `engine.Engine`; every other process has a
`client.EngineClient`, which starts, watches and cancels workflows by name and never runs one.
"""
