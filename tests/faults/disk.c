/* A disk that fails while a process uses it, for LD_PRELOAD.

   The file that SENDENSE_FAULTS names says what happens to calls on files whose path begins with a
   prefix: "<errno> <milliseconds> <prefix>" on one line. errno 0 lets the call through, slowly.
   EIO fails reads and writes, any other number only what changes something. Without the file, all
   is well: a test writes it in the middle of a run and removes it again. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int fault(const char *path, int changes)
{
    const char *control = getenv("SENDENSE_FAULTS");
    char text[PATH_MAX + 64], prefix[PATH_MAX];
    int number, milliseconds;
    if (!control || !path)
        return 0;
    int fd = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (length <= 0)
        return 0;
    text[length] = 0;
    if (sscanf(text, "%d %d %4095s", &number, &milliseconds, prefix) != 3)
        return 0;
    if (strncmp(path, prefix, strlen(prefix)))
        return 0;
    if (changes && milliseconds)
        usleep(milliseconds * 1000);
    return changes || number == EIO ? number : 0;
}

static int fault_fd(int fd, int changes)
{
    char link[64], path[PATH_MAX];
    if (!getenv("SENDENSE_FAULTS"))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return fault(path, changes);
}

static int fault_at(int folder, const char *name, int changes)
{
    char link[64], path[PATH_MAX];
    if (!name || name[0] == '/' || folder == AT_FDCWD)
        return fault(name, changes);
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    snprintf(path + length, sizeof path - length, "/%s", name);
    return fault(path, changes);
}

#define REFUSE(condition)            \
    do {                             \
        int number = (condition);    \
        if (number) {                \
            errno = number;          \
            return -1;               \
        }                            \
    } while (0)

#define ON_FD(type, name, changes, declared, passed) \
    type name declared                               \
    {                                                \
        REFUSE(fault_fd(fd, changes));               \
        return NEXT(name) passed;                    \
    }

ON_FD(ssize_t, write, 1, (int fd, const void *data, size_t size), (fd, data, size))
ON_FD(ssize_t, pwrite, 1, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_FD(ssize_t, pwrite64, 1, (int fd, const void *data, size_t size, off64_t at),
      (fd, data, size, at))
ON_FD(ssize_t, writev, 1, (int fd, const struct iovec *data, int count), (fd, data, count))
ON_FD(ssize_t, pwritev, 1, (int fd, const struct iovec *data, int count, off_t at),
      (fd, data, count, at))
ON_FD(ssize_t, pwritev64, 1, (int fd, const struct iovec *data, int count, off64_t at),
      (fd, data, count, at))
ON_FD(ssize_t, read, 0, (int fd, void *data, size_t size), (fd, data, size))
ON_FD(ssize_t, pread, 0, (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
ON_FD(ssize_t, pread64, 0, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
ON_FD(int, fsync, 1, (int fd), (fd))
ON_FD(int, fdatasync, 1, (int fd), (fd))
ON_FD(int, ftruncate, 1, (int fd, off_t size), (fd, size))
ON_FD(int, ftruncate64, 1, (int fd, off64_t size), (fd, size))

#define ON_PATH(name, declared, passed, folder, path) \
    int name declared                                 \
    {                                                 \
        REFUSE(fault_at(folder, path, 1));            \
        return NEXT(name) passed;                     \
    }

ON_PATH(unlink, (const char *path), (path), AT_FDCWD, path)
ON_PATH(unlinkat, (int folder, const char *path, int flags), (folder, path, flags), folder, path)
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ON_PATH(mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode), folder, path)
ON_PATH(rename, (const char *from, const char *path), (from, path), AT_FDCWD, path)
ON_PATH(renameat, (int from, const char *old, int folder, const char *path),
        (from, old, folder, path), folder, path)
ON_PATH(linkat, (int from, const char *old, int folder, const char *path, int flags),
        (from, old, folder, path, flags), folder, path)

#define ON_OPEN(name, declared, passed, folder)                                   \
    int name declared                                                             \
    {                                                                             \
        mode_t mode = 0;                                                          \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                    \
            va_list more;                                                         \
            va_start(more, flags);                                                \
            mode = va_arg(more, mode_t);                                          \
            va_end(more);                                                         \
        }                                                                         \
        REFUSE(fault_at(folder, path, (flags & (O_CREAT | O_WRONLY | O_RDWR)) != 0)); \
        return NEXT(name) passed;                                                 \
    }

ON_OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
ON_OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
ON_OPEN(openat, (int folder, const char *path, int flags, ...), (folder, path, flags, mode), folder)
ON_OPEN(openat64, (int folder, const char *path, int flags, ...), (folder, path, flags, mode),
        folder)
