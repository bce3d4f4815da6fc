// io_uring by its system calls: the three that are needed here are stable since Linux 5.6 and need no library.
#define _GNU_SOURCE
#include "include/uring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct clinux_uring {
    int fd;
    unsigned entries;
    void *sq_ring;
    size_t sq_ring_bytes;
    void *cq_ring;
    size_t cq_ring_bytes;
    struct io_uring_sqe *sqes;
    size_t sqes_bytes;
    _Atomic unsigned *sq_tail;
    unsigned *sq_mask;
    unsigned *sq_array;
    _Atomic unsigned *cq_head;
    _Atomic unsigned *cq_tail;
    unsigned *cq_mask;
    struct io_uring_cqe *cqes;
};

static void *map_ring(int fd, size_t bytes, off_t what) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);
    return at == MAP_FAILED ? NULL : at;
}

void clinux_uring_destroy(struct clinux_uring *ring) {
    if (ring->sqes) munmap(ring->sqes, ring->sqes_bytes);
    if (ring->cq_ring) munmap(ring->cq_ring, ring->cq_ring_bytes);
    if (ring->sq_ring) munmap(ring->sq_ring, ring->sq_ring_bytes);
    if (ring->fd >= 0) close(ring->fd);
    free(ring);
}

int clinux_uring_create(unsigned entries, struct clinux_uring **out) {
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    int fd = (int)syscall(__NR_io_uring_setup, entries, &params);
    if (fd < 0) return errno;
    struct clinux_uring *ring = calloc(1, sizeof *ring);
    if (!ring) {
        close(fd);
        return ENOMEM;
    }
    ring->fd = fd;
    ring->entries = params.sq_entries;
    ring->sq_ring_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    ring->cq_ring_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    ring->sqes_bytes = params.sq_entries * sizeof(struct io_uring_sqe);
    ring->sq_ring = map_ring(fd, ring->sq_ring_bytes, IORING_OFF_SQ_RING);
    ring->cq_ring = map_ring(fd, ring->cq_ring_bytes, IORING_OFF_CQ_RING);
    ring->sqes = map_ring(fd, ring->sqes_bytes, IORING_OFF_SQES);
    if (!ring->sq_ring || !ring->cq_ring || !ring->sqes) {
        int failure = errno;
        clinux_uring_destroy(ring);
        return failure;
    }
    char *sq = ring->sq_ring, *cq = ring->cq_ring;
    ring->sq_tail = (_Atomic unsigned *)(sq + params.sq_off.tail);
    ring->sq_mask = (unsigned *)(sq + params.sq_off.ring_mask);
    ring->sq_array = (unsigned *)(sq + params.sq_off.array);
    ring->cq_head = (_Atomic unsigned *)(cq + params.cq_off.head);
    ring->cq_tail = (_Atomic unsigned *)(cq + params.cq_off.tail);
    ring->cq_mask = (unsigned *)(cq + params.cq_off.ring_mask);
    ring->cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
    *out = ring;
    return 0;
}

static void prepare(struct clinux_uring *ring, int fd, int is_write, struct clinux_transfer *transfer, uint64_t tag) {
    unsigned tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed);
    unsigned index = tail & *ring->sq_mask;
    struct io_uring_sqe *sqe = &ring->sqes[index];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = is_write ? IORING_OP_WRITE : IORING_OP_READ;
    sqe->fd = fd;
    sqe->off = transfer->offset;
    sqe->addr = (uint64_t)(uintptr_t)transfer->buffer;
    sqe->len = transfer->length;
    sqe->user_data = tag;
    ring->sq_array[index] = index;
    atomic_store_explicit(ring->sq_tail, tail + 1, memory_order_release);
}

static unsigned reap(struct clinux_uring *ring, struct clinux_transfer *transfers) {
    unsigned head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
    unsigned tail = atomic_load_explicit(ring->cq_tail, memory_order_acquire);
    unsigned count = 0;
    for (; head != tail; head++, count++) {
        struct io_uring_cqe *cqe = &ring->cqes[head & *ring->cq_mask];
        transfers[cqe->user_data].result = cqe->res;
    }
    atomic_store_explicit(ring->cq_head, head, memory_order_release);
    return count;
}

int clinux_uring_run(struct clinux_uring *ring, int fd, int is_write, struct clinux_transfer *transfers,
                     unsigned count) {
    unsigned first = 0;
    while (first < count) {
        unsigned wave = count - first < ring->entries ? count - first : ring->entries;
        for (unsigned i = 0; i < wave; i++) prepare(ring, fd, is_write, &transfers[first + i], first + i);
        unsigned unsubmitted = wave, ended = 0;
        while (ended < wave) {
            long done = syscall(__NR_io_uring_enter, ring->fd, unsubmitted, wave - ended, IORING_ENTER_GETEVENTS, NULL,
                                0);
            if (done < 0 && errno != EINTR && errno != EAGAIN && errno != EBUSY) return errno;
            if (done > 0) unsubmitted -= (unsigned)done;
            ended += reap(ring, transfers);
        }
        first += wave;
    }
    return 0;
}
