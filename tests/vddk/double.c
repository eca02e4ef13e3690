/* A stand-in for VMware's libvixDiskLib, loaded by the real nbdkit vddk plugin.
 *
 * It serves raw files and obeys <libdir>/double.conf, since the reader gives
 * nbdkit no environment of ours. One setting per line, all of them optional:
 *
 *   user=, password=, thumbprint=   what a caller has to send
 *   disk=VM TAB SNAPSHOT TAB PATH TAB FILE
 *                                   one per disk; "-" means no snapshot
 *   fail_init=, fail_connect=, fail_open=TEXT
 *                                   the call fails with this warning
 *   fail_sector=N, crash_sector=N, hang_sector=N
 *                                   what happens to a read that touches it
 *   fail_read=TEXT                  the warning of fail_sector
 *   fail_reads=N                    how often fail_sector fails; default always
 *
 * Every call is logged to <libdir>/double.log, without secrets.  Structures and
 * prototypes follow VMware's published "Virtual Disk Development Kit
 * Programming Guide"; only members that the plugin uses have names here.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define API __attribute__ ((visibility ("default")))
#define SECTOR 512
#define READ_ONLY 4
#define USER_AND_PASSWORD 1

enum result { DONE = 0, FAILED = 1, NOT_FOUND = 4, UNSUPPORTED = 6, NO_ACCESS = 13,
              REFUSED = 18000, UNTRUSTED = 18001, LATER = 25000 };

typedef uint64_t VixError;
typedef void Log (const char *format, va_list arguments);
typedef void Completion (void *data, VixError result);

struct params {
  char *vm, *server, *thumbprint;
  long unused_1;
  int credentials;
  struct { char *user, *password, *unused; } login;
  uint32_t port, nfc_port;
  char *unused_2, unused_3[8];
  void *unused_4, *unused_5[3];
  int unused_6;
};

struct info {
  uint32_t geometry[6];
  uint64_t sectors;
  int adapter, links;
  char *parent, *uuid;
  uint32_t sector_logical, sector_physical;
};

struct block { uint64_t start, length; };
struct blocks { uint32_t count; struct block block[1]; };
struct connection { char vm[64], snapshot[64]; bool read_only; };
struct disk { int file; uint64_t sectors; };

static char folder[3000];
static Log *log_line, *warn_line;
static int64_t reads_failed;

static void
record (const char *format, ...)
{
  char path[4096];
  va_list arguments;
  FILE *file;

  snprintf (path, sizeof path, "%s/double.log", folder);
  if ((file = fopen (path, "a")) == NULL)
    return;
  va_start (arguments, format);
  vfprintf (file, format, arguments);
  va_end (arguments);
  fputc ('\n', file);
  fclose (file);
}

static void
tell (Log *where, const char *format, ...)
{
  va_list arguments;

  if (where == NULL)
    return;
  va_start (arguments, format);
  where (format, arguments);
  va_end (arguments);
}

/* Finds the nth line of a setting; its value is valid until the next call. */
static const char *
setting (const char *name, unsigned nth)
{
  static __thread char line[8192];
  char path[4096];
  size_t length = strlen (name);
  FILE *file;

  snprintf (path, sizeof path, "%s/double.conf", folder);
  if ((file = fopen (path, "r")) == NULL)
    return NULL;
  while (fgets (line, sizeof line, file) != NULL) {
    if (strncmp (line, name, length) == 0 && line[length] == '=' && nth-- == 0) {
      line[strcspn (line, "\n")] = '\0';
      fclose (file);
      return line + length + 1;
    }
  }
  fclose (file);
  return NULL;
}

static bool
is_wanted (const char *name, const char *value)
{
  const char *wanted = setting (name, 0);
  return wanted == NULL || (value != NULL && strcmp (wanted, value) == 0);
}

static bool
touches (const char *name, uint64_t start, uint64_t count)
{
  const char *value = setting (name, 0);
  uint64_t sector = value ? strtoull (value, NULL, 10) : 0;
  return value != NULL && start <= sector && sector < start + count;
}

/* Fails if told to; the text goes the way of VDDK's own warnings. */
static bool
is_told_to_fail (const char *name)
{
  const char *text = setting (name, 0);
  if (text != NULL)
    tell (warn_line, "%s\n", text);
  return text != NULL;
}

API VixError
VixDiskLib_InitEx (uint32_t major, uint32_t minor, Log *log, Log *warn, Log *panic,
                   const char *libdir, const char *config)
{
  snprintf (folder, sizeof folder, "%s", libdir);
  log_line = log;
  warn_line = warn;
  (void) panic;
  (void) config;
  tell (log_line, "VixDiskLib double for %u.%u\n", major, minor);
  record ("init home=%s sendense=%s", getenv ("HOME") ? getenv ("HOME") : "-",
          getenv ("SENDENSE_TEST_SECRET") ? "leaked" : "-");
  return is_told_to_fail ("fail_init") ? FAILED : DONE;
}

API void
VixDiskLib_Exit (void)
{
  record ("exit");
}

API const char *
VixDiskLib_ListTransportModes (void)
{
  return "file:nbdssl:nbd";
}

API char *
VixDiskLib_GetErrorText (VixError error, const char *locale)
{
  (void) locale;
  switch (error) {
  case NOT_FOUND: return strdup ("A file was not found");
  case NO_ACCESS: return strdup ("You do not have access rights to this file");
  case REFUSED: return strdup ("Cannot connect to host");
  case UNTRUSTED: return strdup ("The host certificate chain is not trusted");
  default: return strdup ("Unknown error");
  }
}

API void VixDiskLib_FreeErrorText (char *text) { free (text); }

API struct params *
VixDiskLib_AllocateConnectParams (void)
{
  return calloc (1, sizeof (struct params) + 64);
}

API void VixDiskLib_FreeConnectParams (struct params *params) { free (params); }

API VixError
VixDiskLib_ConnectEx (const struct params *params, char read_only, const char *snapshot,
                      const char *transports, void **out)
{
  const char *vm = params->vm ? params->vm : "";
  struct connection *made;

  record ("connect server=%s port=%u vm=%s snapshot=%s transports=%s read_only=%d",
          params->server ? params->server : "-", params->port, vm, snapshot ? snapshot : "-",
          transports ? transports : "-", read_only);
  if (is_told_to_fail ("fail_connect"))
    return REFUSED;
  if (!is_wanted ("thumbprint", params->thumbprint)) {
    tell (log_line, "VixDiskLibVim: Failed to verify SSL certificate: actual thumbprint=xx\n");
    return UNTRUSTED;
  }
  if (params->credentials != USER_AND_PASSWORD || !is_wanted ("user", params->login.user)
      || !is_wanted ("password", params->login.password)) {
    /* A careless library may print what it was given: the reader has to redact it. */
    tell (warn_line, "VixDiskLibVim: Cannot complete login due to an incorrect user name or "
          "password: %s\n", params->login.password);
    return REFUSED;
  }
  if ((made = calloc (1, sizeof *made)) == NULL)
    return FAILED;
  snprintf (made->vm, sizeof made->vm, "%s", strncmp (vm, "moref=", 6) == 0 ? vm + 6 : vm);
  snprintf (made->snapshot, sizeof made->snapshot, "%s", snapshot ? snapshot : "-");
  made->read_only = read_only;
  *out = made;
  return DONE;
}

API VixError
VixDiskLib_Disconnect (void *connection)
{
  record ("disconnect");
  free (connection);
  return DONE;
}

/* Finds the file behind a disk; the caller frees it. */
static char *
find_file (const struct connection *connection, const char *path)
{
  const char *line;
  char *copy, *rest, *vm, *snapshot, *name, *file, *found = NULL;

  for (unsigned nth = 0; found == NULL && (line = setting ("disk", nth)) != NULL; nth++) {
    copy = strdup (line);
    vm = strtok_r (copy, "\t", &rest);
    snapshot = strtok_r (NULL, "\t", &rest);
    name = strtok_r (NULL, "\t", &rest);
    file = strtok_r (NULL, "\t", &rest);
    if (file != NULL && strcmp (vm, connection->vm) == 0
        && strcmp (snapshot, connection->snapshot) == 0 && strcmp (name, path) == 0)
      found = strdup (file);
    free (copy);
  }
  return found;
}

API VixError
VixDiskLib_Open (void *connection, const char *path, uint32_t flags, void **out)
{
  const struct connection *from = connection;
  bool read_only = from->read_only || (flags & READ_ONLY);
  char *file;
  struct disk *made;
  struct stat facts;

  record ("open path=%s flags=%u", path, flags);
  if (is_told_to_fail ("fail_open"))
    return FAILED;
  if ((file = find_file (from, path)) == NULL)
    return NOT_FOUND;
  made = calloc (1, sizeof *made);
  if (made != NULL)
    made->file = open (file, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
  free (file);
  if (made == NULL || made->file == -1 || fstat (made->file, &facts) == -1) {
    free (made);
    return NO_ACCESS;
  }
  made->sectors = facts.st_size / SECTOR;
  *out = made;
  return DONE;
}

API VixError
VixDiskLib_Close (void *handle)
{
  struct disk *disk = handle;

  record ("close");
  close (disk->file);
  free (disk);
  return DONE;
}

API const char *
VixDiskLib_GetTransportMode (void *handle)
{
  (void) handle;
  return "nbdssl";
}

API VixError
VixDiskLib_GetInfo (void *handle, struct info **out)
{
  if ((*out = calloc (1, sizeof **out)) == NULL)
    return FAILED;
  (*out)->sectors = ((struct disk *) handle)->sectors;
  (*out)->sector_logical = (*out)->sector_physical = SECTOR;
  return DONE;
}

API void VixDiskLib_FreeInfo (struct info *info) { free (info); }

static bool
is_read_to_fail (void)
{
  const char *most = setting ("fail_reads", 0);
  return most == NULL || reads_failed++ < atoll (most);
}

static VixError
move (struct disk *disk, uint64_t start, uint64_t count, char *buffer, bool write)
{
  uint64_t offset = start * SECTOR, left = count * SECTOR;
  ssize_t done;

  if (start + count > disk->sectors)
    return FAILED;
  if (touches ("crash_sector", start, count))
    abort ();
  while (touches ("hang_sector", start, count))
    sleep (1);
  if (touches ("fail_sector", start, count) && is_read_to_fail ()) {
    is_told_to_fail ("fail_read");
    return NO_ACCESS;
  }
  while (left > 0) {
    done = write ? pwrite (disk->file, buffer, left, offset)
                 : pread (disk->file, buffer, left, offset);
    if (done <= 0)
      return FAILED;
    buffer += done;
    offset += done;
    left -= done;
  }
  return DONE;
}

API VixError
VixDiskLib_Read (void *handle, uint64_t start, uint64_t count, unsigned char *buffer)
{
  return move (handle, start, count, (char *) buffer, false);
}

API VixError
VixDiskLib_Write (void *handle, uint64_t start, uint64_t count, const unsigned char *buffer)
{
  return move (handle, start, count, (char *) buffer, true);
}

API VixError
VixDiskLib_ReadAsync (void *handle, uint64_t start, uint64_t count, unsigned char *buffer,
                      Completion *completed, void *data)
{
  completed (data, move (handle, start, count, (char *) buffer, false));
  return LATER;
}

API VixError
VixDiskLib_WriteAsync (void *handle, uint64_t start, uint64_t count,
                       const unsigned char *buffer, Completion *completed, void *data)
{
  completed (data, move (handle, start, count, (char *) buffer, true));
  return LATER;
}

API VixError
VixDiskLib_Wait (void *handle)
{
  (void) handle;
  return DONE;
}

API VixError
VixDiskLib_Flush (void *handle)
{
  return fdatasync (((struct disk *) handle)->file) == 0 ? DONE : FAILED;
}

API VixError
VixDiskLib_Create (void *connection, const char *path, const void *params, void *progress,
                   void *data)
{
  (void) connection; (void) path; (void) params; (void) progress; (void) data;
  return UNSUPPORTED;
}

/* Allocated runs are those of the raw file, rounded out to whole chunks. */
API VixError
VixDiskLib_QueryAllocatedBlocks (void *handle, uint64_t start, uint64_t count, uint64_t chunk,
                                 struct blocks **out)
{
  const struct disk *disk = handle;
  uint64_t end = start + count, at = start, first, last;
  struct blocks *list = calloc (1, sizeof *list), *grown;
  off_t data, hole;

  while (list != NULL && at < end) {
    data = lseek (disk->file, at * SECTOR, SEEK_DATA);
    if (data == -1 || (uint64_t) data >= end * SECTOR)
      break;
    hole = lseek (disk->file, data, SEEK_HOLE);
    first = data / SECTOR / chunk * chunk;
    last = (hole / SECTOR + chunk - 1) / chunk * chunk;
    first = first < at ? at : first;
    last = last > end ? end : last;
    grown = realloc (list, sizeof *list + (list->count + 1) * sizeof (struct block));
    if (grown == NULL)
      break;
    list = grown;
    list->block[list->count++] = (struct block) { first, last - first };
    at = last;
  }
  *out = list;
  return list != NULL ? DONE : FAILED;
}

API VixError
VixDiskLib_FreeBlockList (struct blocks *list)
{
  free (list);
  return DONE;
}
