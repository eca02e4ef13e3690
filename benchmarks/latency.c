// Writes 4 KiB to random places of a range as a database commits, O_DIRECT and O_SYNC, and logs when
// each write ended and how long it took, in microseconds: latency DEVICE OFFSET LENGTH PAUSE_US.
// Runs in the demonstration guest, which has busybox and no libc: compiled statically.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096

static int64_t now(void) {
    struct timespec moment;
    clock_gettime(CLOCK_BOOTTIME, &moment);  // what /proc/uptime tells
    return (int64_t)moment.tv_sec * 1000000 + moment.tv_nsec / 1000;
}

int main(int count, char **given) {
    if (count != 5) return 2;
    int disk = open(given[1], O_WRONLY | O_DIRECT | O_SYNC);
    int64_t offset = atoll(given[2]), blocks = atoll(given[3]) / BLOCK;
    void *block;
    if (disk < 0 || blocks < 1 || posix_memalign(&block, BLOCK, BLOCK)) return 1;
    srandom(1);
    for (uint64_t number = 0;; number++) {
        memset(block, (int)(number % 251), BLOCK);
        memcpy(block, &number, sizeof number);
        int64_t began = now();
        if (pwrite(disk, block, BLOCK, offset + random() % blocks * BLOCK) != BLOCK) return 1;
        int64_t ended = now();
        printf("%lld %lld\n", (long long)ended, (long long)(ended - began));
        fflush(stdout);
        usleep((useconds_t)atoi(given[4]));
    }
}
