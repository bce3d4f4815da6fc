/* The floor under every iSCSI target: answers READ(16) with bytes from memory and throws away what WRITE(16) sends. It
 * checks nothing, keeps nothing and knows one client: what it costs is what sockets and the client cost.
 *
 * One thread, epoll, one receive buffer for each connection, one send for each receive.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER = 48, FIRST_BURST = 256 << 10, BURST = 256 << 10, SEGMENT = 256 << 10, BUFFER = 4 << 20, TASKS = 4096 };

struct connection {
    int fd;
    unsigned char *in;
    size_t have;
    uint32_t stat, expected;
    struct { uint32_t tag, length, received, requested; } tasks[TASKS];
};

static uint64_t blocks;
static unsigned char data[1 << 20], *out;
static size_t filled;

static uint32_t get(const unsigned char *at) { return (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3]; }
static void put(unsigned char *at, uint32_t value) {
    at[0] = value >> 24, at[1] = value >> 16, at[2] = value >> 8, at[3] = value;
}

static void deliver(struct connection *c) {
    for (size_t done = 0; done < filled;) {
        ssize_t count = send(c->fd, out + done, filled - done, MSG_NOSIGNAL);
        if (count < 0) break;
        done += count;
    }
    filled = 0;
}

/* Appends a PDU; the header's length, StatSN and window are filled in here. */
static void answer(struct connection *c, unsigned char *header, const void *bytes, uint32_t count, int numbered) {
    if (filled + HEADER + count + 4 > BUFFER) deliver(c);
    put(header + 4, count);
    put(header + 24, c->stat);
    if (numbered) c->stat++;
    put(header + 28, c->expected);
    put(header + 32, c->expected + 255);
    memcpy(out + filled, header, HEADER);
    memcpy(out + filled + HEADER, bytes, count);
    filled += HEADER + count;
    while (count++ % 4) out[filled++] = 0;
}

static void status(struct connection *c, uint32_t tag, const void *sense, uint32_t count) {
    unsigned char header[HEADER] = {0x21, 0x80};
    put(header + 16, tag);
    answer(c, header, sense, count, 1);
}

static void reply(struct connection *c, uint32_t tag, const unsigned char *bytes, uint32_t count, uint32_t expected) {
    uint32_t sent = 0, number = 0, whole = count < expected ? count : expected;
    do {
        unsigned char header[HEADER] = {0x25, 0};
        uint32_t part = whole - sent < SEGMENT ? whole - sent : SEGMENT;
        put(header + 16, tag);
        put(header + 20, 0xffffffff);
        put(header + 36, number++);
        put(header + 40, sent);
        sent += part;
        int last = sent == whole;
        if (last) header[1] = 0x81;
        if (last && whole < expected) header[1] |= 2, put(header + 44, expected - whole);
        answer(c, header, bytes + sent - part, part, last);
    } while (sent < whole);
}

static void received(struct connection *c, uint32_t tag, uint32_t count) {
    for (int i = 0; i < TASKS; i++) {
        if (c->tasks[i].tag != tag || !c->tasks[i].length) continue;
        c->tasks[i].received += count;
        if (c->tasks[i].received == c->tasks[i].length) {
            c->tasks[i].length = 0;
            status(c, tag, "", 0);
        } else if (c->tasks[i].received >= c->tasks[i].requested) {
            unsigned char header[HEADER] = {0x31, 0x80};
            uint32_t rest = c->tasks[i].length - c->tasks[i].received;
            put(header + 16, tag);
            put(header + 20, i + 1);
            put(header + 40, c->tasks[i].received);
            put(header + 44, rest < BURST ? rest : BURST);
            c->tasks[i].requested = c->tasks[i].received + (rest < BURST ? rest : BURST);
            answer(c, header, "", 0, 0);
        }
        return;
    }
}

static void command(struct connection *c, const unsigned char *pdu, uint32_t count) {
    uint32_t tag = get(pdu + 16), expected = get(pdu + 20);
    unsigned char reply_data[256] = {0};
    switch (pdu[32]) {
    case 0x88: reply(c, tag, data, expected, expected); break;
    case 0x8a:
        if (count == expected) { status(c, tag, "", 0); break; }
        for (int i = 0; i < TASKS; i++) {
            if (c->tasks[i].length) continue;
            c->tasks[i].tag = tag, c->tasks[i].length = expected, c->tasks[i].received = 0;
            c->tasks[i].requested = expected < FIRST_BURST ? expected : FIRST_BURST;
            received(c, tag, count);
            break;
        }
        break;
    case 0x9e:
        put(reply_data, (blocks - 1) >> 32), put(reply_data + 4, blocks - 1), put(reply_data + 8, 512);
        reply(c, tag, reply_data, 32, expected);
        break;
    case 0x12: reply_data[2] = 6, reply_data[4] = 31; reply(c, tag, reply_data, 36, expected); break;
    default: status(c, tag, "", 0);
    }
}

static void login(struct connection *c, const unsigned char *pdu) {
    static const char keys[] = "TargetPortalGroupTag=1\0HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0"
                               "ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0FirstBurstLength=262144\0"
                               "MaxBurstLength=262144\0MaxOutstandingR2T=1\0MaxConnections=1\0ErrorRecoveryLevel=0\0"
                               "DefaultTime2Wait=0\0DefaultTime2Retain=0\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes";
    unsigned char header[HEADER] = {0x23};
    int is_last = (pdu[1] & 0x83) == 0x83, is_operational = (pdu[1] & 0x0c) == 4;
    header[1] = pdu[1];
    memcpy(header + 8, pdu + 8, 8);
    if (is_last) header[15] = 1;
    put(header + 16, get(pdu + 16));
    c->expected = get(pdu + 24);
    if (is_operational) answer(c, header, keys, sizeof keys, 1);
    else answer(c, header, "AuthMethod=None", 16, 1);
}

/* Handles the whole PDUs that are there; returns how many bytes of them. */
static size_t consume(struct connection *c) {
    size_t used = 0;
    while (c->have - used >= HEADER) {
        unsigned char *pdu = c->in + used;
        uint32_t count = get(pdu + 4) & 0xffffff;
        size_t whole = HEADER + ((count + 3) & ~3u);
        if (c->have - used < whole) break;
        unsigned char opcode = pdu[0] & 0x3f, header[HEADER] = {0};
        if (opcode != 3 && opcode != 5 && !(pdu[0] & 0x40)) c->expected = get(pdu + 24) + 1;
        switch (opcode) {
        case 1: command(c, pdu, count); break;
        case 3: login(c, pdu); break;
        case 5: received(c, get(pdu + 16), count); break;
        case 6: header[0] = 0x26, header[1] = 0x80, put(header + 16, get(pdu + 16)), answer(c, header, "", 0, 1); break;
        case 0:
            header[0] = 0x20, header[1] = 0x80, put(header + 16, get(pdu + 16)), put(header + 20, 0xffffffff);
            answer(c, header, "", 0, 1);
            break;
        default: return SIZE_MAX;
        }
        used += whole;
    }
    return used;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: floor PORT MEGABYTES\n"), 2;
    blocks = strtoull(argv[2], NULL, 10) << 11;
    out = malloc(BUFFER);
    memset(data, 0x5a, sizeof data);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 64)) return perror("floor"), 1;
    int queue = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(queue, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(queue, events, 64, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                c = calloc(1, sizeof *c);
                c->fd = accept(listener, NULL, NULL);
                c->in = malloc(BUFFER);
                setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                event.data.ptr = c;
                epoll_ctl(queue, EPOLL_CTL_ADD, c->fd, &event);
                continue;
            }
            ssize_t got = recv(c->fd, c->in + c->have, BUFFER - c->have, 0);
            size_t used = got > 0 ? (c->have += got, consume(c)) : SIZE_MAX;
            if (used == SIZE_MAX) {
                close(c->fd);
                free(c->in);
                free(c);
                continue;
            }
            if (filled) deliver(c);
            memmove(c->in, c->in + used, c->have - used);
            c->have -= used;
        }
    }
}
