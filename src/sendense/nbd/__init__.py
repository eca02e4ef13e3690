"""NBD, client and server side, blocking, in plain Python.

Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""
