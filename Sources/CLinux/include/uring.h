#pragma once
#include <stdint.h>

/// An io_uring with its rings mapped; used by one thread at a time.
struct clinux_uring;

/// One transfer of a batch.
struct clinux_transfer {
    uint64_t offset;
    void *buffer;
    uint32_t length;
    /// Bytes transferred, or the errno as a negative number.
    int32_t result;
};

/// Makes a ring for `entries` transfers at a time, a power of two. 0, or errno: EPERM where a sysctl or a seccomp
/// filter forbids it, ENOSYS where the kernel has none.
int clinux_uring_create(unsigned entries, struct clinux_uring **ring);
void clinux_uring_destroy(struct clinux_uring *ring);

/// Carries out `count` reads or writes of one descriptor, side by side, and returns when all have ended. 0, or the
/// errno of io_uring_enter itself, after which the ring must be destroyed; each transfer has its own result.
int clinux_uring_run(struct clinux_uring *ring, int fd, int is_write, struct clinux_transfer *transfers,
                     unsigned count);
