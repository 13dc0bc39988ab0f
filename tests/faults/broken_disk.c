/*
 * Makes calls fail on the files below one folder, as a disk does that is full or breaks.
 *
 * BROKEN_DISK names a file with one line, CALL ERRNO COUNT FOLDER: the next COUNT calls of CALL (open, write, fsync,
 * rename) on FOLDER or below fail with ERRNO. The file is read at each call and written back with what is left of
 * COUNT; where it is not there, nothing fails. Loaded by LD_PRELOAD.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_below(const char *path, const char *folder) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* Whether this call is to fail; counts it. Uses bare system calls, for ours would come here again. */
static int fails(const char *call, const char *path) {
    const char *control = getenv("BROKEN_DISK");
    char text[PATH_MAX + 64], name[16], folder[PATH_MAX];
    int number, count, kept = errno;
    if (!control || !path) return 0;
    long fd = syscall(SYS_openat, AT_FDCWD, control, O_RDWR | O_CLOEXEC);
    if (fd < 0) { errno = kept; return 0; }
    long size = syscall(SYS_pread64, fd, text, sizeof text - 1, 0L);
    int hit = 0;
    if (size > 0) {
        text[size] = '\0';
        if (sscanf(text, "%15s %d %d %4095s", name, &number, &count, folder) == 4 && count > 0
            && strcmp(name, call) == 0 && is_below(path, folder)) {
            int length = snprintf(text, sizeof text, "%s %d %d %s\n", name, number, count - 1, folder);
            syscall(SYS_ftruncate, fd, 0L);
            syscall(SYS_pwrite64, fd, text, (long)length, 0L);
            hit = 1;
        }
    }
    syscall(SYS_close, fd);
    errno = hit ? number : kept;
    return hit;
}

static const char *path_of(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, (long)PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = '\0';
    return buffer;
}

int fsync(int fd) {
    char path[PATH_MAX];
    if (fails("fsync", path_of(fd, path))) return -1;
    return (int)syscall(SYS_fsync, fd);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (fails("write", path_of(fd, path))) return -1;
    return syscall(SYS_writev, fd, parts, count);
}

static int opened(const char *path, int flags, mode_t mode) {
    if ((flags & O_CREAT) && fails("open", path)) return -1;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(path, flags | O_LARGEFILE, mode);
}

int rename(const char *from, const char *to) {
    if (fails("rename", to)) return -1;
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
