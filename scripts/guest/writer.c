// Writes the numbers 1, 2, 3, … to each of several files, one line of 16 bytes each, durable in the first file before it
// goes to the second, and so on. So of files F1, F2, … every copy that was taken at one instant holds 1…n1, 1…n2, … with
// n1 >= n2 >= … >= n1 - 1. What it has done, and the longest time that a round took, stands in a file in memory.
// With -l, each round longer than 5 ms is a line of a log, which lies in memory, too: the calendar's time of its end, and how
// long it took, in seconds.
//   writer [-p PAUSE_MICROSECONDS] [-l LOG_FILE] STATUS_FILE FILE...
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    long pause = 0;
    FILE *log = NULL;
    int option;
    while ((option = getopt(argc, argv, "p:l:")) != -1) {
        if (option == 'p') {
            pause = atol(optarg);
        } else if (option != 'l' || !(log = fopen(optarg, "w"))) {
            return 2;
        }
    }
    int files = argc - optind - 1;
    if (files < 1 || files > 16) {
        fprintf(stderr, "usage: writer [-p PAUSE_MICROSECONDS] [-l LOG_FILE] STATUS_FILE FILE...\n");
        return 2;
    }
    int status = open(argv[optind], O_WRONLY | O_CREAT, 0644);
    int fd[16];
    uint64_t next = 1;
    if (status < 0) {
        perror(argv[optind]);
        return 1;
    }
    for (int i = 0; i < files; i++) {
        fd[i] = open(argv[optind + 1 + i], O_WRONLY | O_CREAT | O_APPEND | O_DSYNC, 0644);
        off_t size = fd[i] < 0 ? -1 : lseek(fd[i], 0, SEEK_END);
        if (size < 0) {
            perror(argv[optind + 1 + i]);
            return 1;
        }
        // Goes on where the shortest file ends: the files after it may lack the last line of those before.
        if (i == 0 || (uint64_t)size / 16 + 1 < next) next = size / 16 + 1;
    }
    double longest = 0, before = now(CLOCK_MONOTONIC);
    for (uint64_t n = next;; n++) {
        char line[32];
        snprintf(line, sizeof line, "%015llu\n", (unsigned long long)n);
        for (int i = 0; i < files; i++) {
            if ((uint64_t)lseek(fd[i], 0, SEEK_END) / 16 >= n) continue;
            if (write(fd[i], line, 16) != 16) {
                fprintf(stderr, "writer: %s: %s\n", argv[optind + 1 + i], strerror(errno));
                return 1;
            }
        }
        double after = now(CLOCK_MONOTONIC);
        if (after - before > longest) longest = after - before;
        if (log && after - before > 0.005) {
            fprintf(log, "%.6f %.6f\n", now(CLOCK_REALTIME), after - before);
            fflush(log);
        }
        before = after;
        char text[64];
        int length = snprintf(text, sizeof text, "%015llu %012.6f\n", (unsigned long long)n, longest);
        if (pwrite(status, text, length, 0) != length) return 1;
        if (pause > 0) {
            usleep(pause);
            before = now(CLOCK_MONOTONIC);
        }
    }
}
