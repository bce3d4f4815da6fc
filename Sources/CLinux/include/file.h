#pragma once
#include <stddef.h>
#include <stdint.h>

// Each returns 0, or the errno of the failure, but where it says otherwise.

/// Deallocates a range of a regular file (fallocate) or block device (BLKDISCARD); later reads of a file give zeros.
int clinux_file_punch(int fd, int is_block_device, uint64_t offset, uint64_t length);
/// Backs a range of a regular file with storage and grows the file to hold it.
int clinux_file_allocate(int fd, uint64_t offset, uint64_t length);
/// Whether nothing of a range of a regular file holds data (lseek(2), SEEK_DATA): 1 or 0, and 0 where the file
/// system does not say.
int clinux_file_is_hole(int fd, uint64_t offset, uint64_t length);
/// Writes `count` bytes and zeros behind them, `length` in all, at most 64 KiB more than `count`, with one call. When
/// it fails, any part may have been written.
int clinux_file_write_backing(int fd, uint64_t offset, const void *bytes, size_t count, uint64_t length);
/// Takes an advisory lock of the whole file without waiting; EWOULDBLOCK when another open file has it.
int clinux_file_lock(int fd, int exclusive);
/// Size in bytes of a regular file or block device; `is_block_device` is set to 0 or 1.
int clinux_file_size(int fd, uint64_t *size, int *is_block_device);
/// Bytes that unprivileged writers can still allocate in the file system that holds the file.
int clinux_file_system_free(int fd, uint64_t *free_bytes);
/// The flag O_DIRECT of open(2), which Swift's import of Glibc lacks.
int clinux_o_direct(void);
/// Begins to write out a range without waiting for it. Whether that goes well, the next fdatasync(2) says.
void clinux_file_start_writeback(int fd, uint64_t offset, uint64_t length);
/// Bytes of storage that the file occupies.
int clinux_file_occupied(int fd, uint64_t *bytes);
