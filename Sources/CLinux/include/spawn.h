#pragma once
#include <stddef.h>
#include <sys/types.h>

// Starts a program with exactly three descriptors, default signal handling and a process group of its own.
//
// A descriptor of -1 stands for /dev/null. With `change_user` the child gives up root for uid, gid and the groups. With
// `die_with_parent` it is killed when the calling thread ends.
// Returns 0 and sets *pid, or the errno of what failed: also of exec itself, which the child reports back.
int clinux_spawn(const char *path, char *const argv[], char *const envp[], const char *directory, int input, int output,
                 int error, int die_with_parent, int change_user, uid_t uid, gid_t gid, const gid_t *groups,
                 size_t group_count, pid_t *pid);

// Close-on-exec and non-blocking on the side named by the flags (1: reading end, 2: writing end). 0 or errno.
int clinux_pipe(int fds[2], int non_blocking_ends);
// A close-on-exec, non-blocking descriptor that poll sees as readable when the process has ended; or -1.
int clinux_pidfd(pid_t pid);
int clinux_eventfd(void);
// Blocks SIGTERM, SIGINT and SIGHUP in the calling thread and gives a descriptor that is readable when one arrives.
int clinux_termination_signals(void);
// Effective user and group of the calling thread only (the C library's calls change all threads). 0 or errno.
int clinux_become_on_this_thread(uid_t uid, gid_t gid);
