#pragma once

/// Lets the C library keep at most `count` arenas, each of which reserves 64 MiB of addresses. 0 on success.
int clinux_limit_arenas(int count);
