/* A clock that is wrong: loaded before the C library, it puts the time of day forward by so many seconds, or back. The clock that only ever
   goes forward, by which waits are measured, stays as it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *at) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(clock, at);
  if (code == 0 && clock == CLOCK_REALTIME) {
    const char *ahead = getenv("CLOCK_AHEAD");
    if (ahead) at->tv_sec += atol(ahead);
  }
  return code;
}
