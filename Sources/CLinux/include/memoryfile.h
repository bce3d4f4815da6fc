#pragma once

// Files that outlive a process but not the machine's run: on tmpfs or ramfs, of this user alone.

/// Opens a directory on a memory file system, made with mode 0700 if it is missing and its parent lies on one.
/// Returns a descriptor, or the negative errno: ENOTSUP when it does not lie in memory, EPERM when it is another
/// user's or open to others.
int clinux_open_memory_directory(const char *path);
/// Opens (makes with mode 0600) a regular file of this user's own. Returns a descriptor, or the negative errno.
int clinux_open_private_file(int directory, const char *name);
/// Removes a file; returns 0 or the errno.
int clinux_remove_file(int directory, const char *name);
/// Cuts a file to a length; returns 0 or the errno.
int clinux_truncate_file(int fd, long long length);
