#define _GNU_SOURCE
#include "include/memoryfile.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

static int lies_in_memory(const struct statfs *status) {
    return status->f_type == TMPFS_MAGIC || status->f_type == RAMFS_MAGIC;
}

int clinux_open_memory_directory(const char *path) {
    struct statfs system;
    struct stat status;
    char copy[PATH_MAX];
    if (strlen(path) >= sizeof copy) return -ENAMETOOLONG;
    strcpy(copy, path);
    if (lstat(path, &status) != 0) {
        if (errno != ENOENT) return -errno;
        if (statfs(dirname(copy), &system) != 0) return -errno;
        if (!lies_in_memory(&system)) return -ENOTSUP;
        if (mkdir(path, 0700) != 0 && errno != EEXIST) return -errno;
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return -errno;
    int failure = 0;
    if (fstatfs(fd, &system) != 0 || fstat(fd, &status) != 0) {
        failure = errno;
    } else if (!lies_in_memory(&system)) {
        failure = ENOTSUP;
    } else if (status.st_uid != geteuid() || (status.st_mode & 077) != 0) {
        failure = EPERM;
    }
    if (failure == 0) return fd;
    close(fd);
    return -failure;
}

int clinux_open_private_file(int directory, const char *name) {
    int fd = openat(directory, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    if (fd < 0) return -errno;
    struct stat status;
    int failure = fstat(fd, &status) != 0 ? errno : 0;
    if (failure == 0 && (!S_ISREG(status.st_mode) || status.st_uid != geteuid())) failure = EPERM;
    if (failure == 0 && fchmod(fd, 0600) != 0) failure = errno;
    if (failure == 0) return fd;
    close(fd);
    return -failure;
}

int clinux_remove_file(int directory, const char *name) { return unlinkat(directory, name, 0) == 0 ? 0 : errno; }

int clinux_truncate_file(int fd, long long length) { return ftruncate(fd, (off_t)length) == 0 ? 0 : errno; }
