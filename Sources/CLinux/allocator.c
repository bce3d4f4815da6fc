#define _GNU_SOURCE

#include "include/allocator.h"

#include <malloc.h>
#include <pthread.h>

int clinux_limit_arenas(int count) { return mallopt(M_ARENA_MAX, count) == 1 ? 0 : -1; }

int clinux_limit_stacks(size_t bytes) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return -1;
    int failure = pthread_attr_setstacksize(&attributes, bytes);
    if (failure == 0) failure = pthread_setattr_default_np(&attributes);
    pthread_attr_destroy(&attributes);
    return failure == 0 ? 0 : -1;
}
