#pragma once

#include <stddef.h>

/// Lets the C library keep at most `count` arenas, each of which reserves 64 MiB of addresses. 0 on success.
int clinux_limit_arenas(int count);

/// Gives threads that are made from now on, and ask for nothing else, `bytes` for their stack. 0 on success.
int clinux_limit_stacks(size_t bytes);
