#include "include/allocator.h"

#include <malloc.h>

int clinux_limit_arenas(int count) { return mallopt(M_ARENA_MAX, count) == 1 ? 0 : -1; }
