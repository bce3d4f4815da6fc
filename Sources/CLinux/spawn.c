#define _GNU_SOURCE
#include "include/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

// Everything here runs between fork and exec in a program with threads: async-signal-safe calls only.
static int move_up(int fd, int access)
{
    if (fd < 0) fd = open("/dev/null", access);
    return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

static int prepare_child(const char *directory, int input, int output, int error, int change_user, uid_t uid, gid_t gid,
                         const gid_t *groups, size_t group_count)
{
    // Above 2 first, so that no dup2 overwrites what a later one needs.
    input = move_up(input, O_RDONLY);
    output = move_up(output, O_WRONLY);
    error = move_up(error, O_WRONLY);
    if (input < 0 || output < 0 || error < 0) return -1;
    if (dup2(input, 0) < 0 || dup2(output, 1) < 0 || dup2(error, 2) < 0) return -1;
    if (syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) < 0) {
        long limit = sysconf(_SC_OPEN_MAX);
        for (int fd = 3; fd < (limit > 0 ? limit : 65536); fd++) fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
    if (setpgid(0, 0) < 0) return -1;
    if (change_user) {
        // The raw calls: the C library's would try to change threads that this child does not have.
        if (syscall(SYS_setgroups, group_count, groups) < 0) return -1;
        if (syscall(SYS_setresgid, gid, gid, gid) < 0) return -1;
        if (syscall(SYS_setresuid, uid, uid, uid) < 0) return -1;
    }
    if (directory && chdir(directory) < 0) return -1;
    for (int number = 1; number < NSIG; number++) {
        if (number != SIGKILL && number != SIGSTOP) signal(number, SIG_DFL);
    }
    sigset_t none;
    sigemptyset(&none);
    return sigprocmask(SIG_SETMASK, &none, NULL);
}

int clinux_spawn(const char *path, char *const argv[], char *const envp[], const char *directory, int input, int output,
                 int error, int die_with_parent, int change_user, uid_t uid, gid_t gid, const gid_t *groups,
                 size_t group_count, pid_t *pid)
{
    pid_t parent = getpid();
    int report[2];
    if (pipe2(report, O_CLOEXEC) < 0) return errno;
    // The child must not run a handler of the parent before it has reset them.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t child = fork();
    if (child == 0) {
        // Above the three standard ones, should the parent run with one of them closed.
        int channel = fcntl(report[1], F_DUPFD_CLOEXEC, 3);
        // After a change of user the kernel forgets it, and a parent that died before it never sends it.
        if (die_with_parent && (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)) _exit(126);
        if (prepare_child(directory, input, output, error, change_user, uid, gid, groups, group_count) == 0)
            execve(path, argv, envp);
        int failure = errno;
        ssize_t written = write(channel, &failure, sizeof failure);
        _exit(written == sizeof failure ? 127 : 126);
    }
    int failure = child < 0 ? errno : 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(report[1]);
    if (child > 0) {
        int reported = 0;
        ssize_t count;
        do {
            count = read(report[0], &reported, sizeof reported);
        } while (count < 0 && errno == EINTR);
        if (count == sizeof reported) {
            failure = reported;
            while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
        } else {
            *pid = child;
        }
    }
    close(report[0]);
    return failure;
}

int clinux_pipe(int fds[2], int non_blocking_ends)
{
    if (pipe2(fds, O_CLOEXEC) < 0) return errno;
    for (int end = 0; end < 2; end++) {
        if ((non_blocking_ends & (1 << end)) && fcntl(fds[end], F_SETFL, O_NONBLOCK) < 0) {
            int failure = errno;
            close(fds[0]);
            close(fds[1]);
            return failure;
        }
    }
    return 0;
}

int clinux_pidfd(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

int clinux_eventfd(void)
{
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

int clinux_termination_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int clinux_become_on_this_thread(uid_t uid, gid_t gid)
{
    // Group first on the way down, user first on the way up: each needs the right to do the other.
    if (uid == 0 && syscall(SYS_setresuid, -1, uid, -1) < 0) return errno;
    if (syscall(SYS_setresgid, -1, gid, -1) < 0) return errno;
    if (uid != 0 && syscall(SYS_setresuid, -1, uid, -1) < 0) return errno;
    return 0;
}
