"""The numbers of the NBD protocol, as in doc/proto.md of the NBD project."""

import struct

GREETING = b"NBDMAGICIHAVEOPT"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF

HANDSHAKE_FIXED_NEWSTYLE = 1
HANDSHAKE_NO_ZEROES = 2

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META = 9
OPT_SET_META = 10

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERROR = 1 << 31
REP_ERR_UNSUPPORTED = REP_ERROR | 1
REP_ERR_POLICY = REP_ERROR | 2
REP_ERR_INVALID = REP_ERROR | 3
REP_ERR_TLS_REQUIRED = REP_ERROR | 5
REP_ERR_UNKNOWN = REP_ERROR | 6

INFO_EXPORT = 0
INFO_BLOCK_SIZE = 3

EXPORT_HAS_FLAGS = 1 << 0
EXPORT_READ_ONLY = 1 << 1
EXPORT_FLUSH = 1 << 2
EXPORT_TRIM = 1 << 5
EXPORT_WRITE_ZEROES = 1 << 6
EXPORT_DF = 1 << 7
EXPORT_MULTI_CONN = 1 << 8

CMD_READ = 0
CMD_WRITE = 1
CMD_DISCONNECT = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

CMD_FLAG_NO_HOLE = 1 << 1
CMD_FLAG_DF = 1 << 2  # answer in one piece
CMD_FLAG_REQ_ONE = 1 << 3

CHUNK_FLAG_DONE = 1
CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_ERROR = 1 << 15  # the bit; the types themselves are this and a number

# What the flags of a block status mean, by context.
ALLOCATION = "base:allocation"
ALLOCATION_HOLE = 1
ALLOCATION_ZERO = 2
DIRTY_BITMAP_PREFIX = "qemu:dirty-bitmap:"
DIRTY = 1

ERROR_PERM = 1
ERROR_IO = 5
ERROR_INVALID = 22
ERROR_NO_SPACE = 28
ERROR_SHUTDOWN = 108

OPTION_HEAD = struct.Struct(">8sII")  # magic, option, length
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
REPLY_HEAD = struct.Struct(">I")  # magic of either kind of reply
SIMPLE_REPLY = struct.Struct(">IQ")  # behind the magic: error, cookie
CHUNK = struct.Struct(">HHQI")  # behind the magic: flags, type, cookie, length
STATUS = struct.Struct(">II")  # length, flags
U16 = struct.Struct(">H")
U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
HOLE = struct.Struct(">QI")  # offset, length
EXPORT_INFO = struct.Struct(">HQH")  # type, size, flags
BLOCK_SIZE_INFO = struct.Struct(">HIII")  # type, minimum, preferred, maximum
