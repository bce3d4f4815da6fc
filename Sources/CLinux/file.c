#define _GNU_SOURCE
#include "include/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

int clinux_file_punch(int fd, int is_block_device, uint64_t offset, uint64_t length) {
    if (is_block_device) {
        uint64_t range[2] = {offset, length};
        return ioctl(fd, BLKDISCARD, range) == 0 ? 0 : errno;
    }
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    return fallocate(fd, mode, (off_t)offset, (off_t)length) == 0 ? 0 : errno;
}

int clinux_file_allocate(int fd, uint64_t offset, uint64_t length) {
    return fallocate(fd, 0, (off_t)offset, (off_t)length) == 0 ? 0 : errno;
}

int clinux_file_is_hole(int fd, uint64_t offset, uint64_t length) {
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
    return data < 0 ? errno == ENXIO : (uint64_t)data >= offset + length;
}

int clinux_file_write_backing(int fd, uint64_t offset, const void *bytes, size_t count, uint64_t length) {
    static const char zeros[65536];
    if (length < count || length - count > sizeof zeros) return EINVAL;
    struct iovec parts[2] = {
        {.iov_base = (void *)bytes, .iov_len = count},
        {.iov_base = (void *)zeros, .iov_len = length - count},
    };
    ssize_t done = pwritev(fd, parts, 2, (off_t)offset);
    if (done < 0) return errno;
    return (uint64_t)done == length ? 0 : EIO;
}

void clinux_file_start_writeback(int fd, uint64_t offset, uint64_t length) {
    (void)sync_file_range(fd, (off64_t)offset, (off64_t)length, SYNC_FILE_RANGE_WRITE);
}

int clinux_file_lock(int fd, int exclusive) {
    return flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0 ? 0 : errno;
}

int clinux_file_size(int fd, uint64_t *size, int *is_block_device) {
    struct stat status;
    if (fstat(fd, &status) != 0) return errno;
    *is_block_device = S_ISBLK(status.st_mode) ? 1 : 0;
    if (*is_block_device) return ioctl(fd, BLKGETSIZE64, size) == 0 ? 0 : errno;
    if (!S_ISREG(status.st_mode)) return EINVAL;
    *size = (uint64_t)status.st_size;
    return 0;
}

int clinux_file_system_free(int fd, uint64_t *free_bytes) {
    struct statvfs status;
    if (fstatvfs(fd, &status) != 0) return errno;
    *free_bytes = (uint64_t)status.f_bavail * status.f_frsize;
    return 0;
}

int clinux_file_occupied(int fd, uint64_t *bytes) {
    struct stat status;
    if (fstat(fd, &status) != 0) return errno;
    *bytes = (uint64_t)status.st_blocks * 512;
    return 0;
}

int clinux_o_direct(void) { return O_DIRECT; }
