#ifndef QEP_BASE_CLOCK_H
#define QEP_BASE_CLOCK_H

/* Seconds on the monotonic clock. */
double qep_now_s(void);

/* Sleeps for about `us` microseconds. */
void qep_sleep_us(unsigned us);

#endif
