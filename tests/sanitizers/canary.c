/* What each sanitizer must report, called from Python as vmcore is: a run that does not report it proves nothing. */
#include <stdlib.h>

static volatile long counter;

/* Called by two threads at once, this races. */
long race(long n) {
    for (long i = 0; i < n; i++) counter = counter + 1;
    return counter;
}

/* Reads one byte behind a block of n bytes. */
int overflow(long n) {
    volatile char *block = malloc(n);
    int byte = block[n];
    free((void *)block);
    return byte;
}

/* Overflows for n > 0. */
int undefined(long n) {
    volatile int most = 2147483647;
    return most + (int)n;
}
