/* The switches and counters that another process holds in a small mapped file: see gentl_sim.py, its other side.
 *
 * Each word has one writer, so that nothing needs a lock: switches and requests are written outside, all others here.
 * A request is a number that only rises; as long as its answer is lower, there is something to do.
 */
#ifndef SIM_CONTROL_H
#define SIM_CONTROL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { CONTROL_VERSION = 1, CONTROL_MAX_DEVICES = 8, CONTROL_WORDS = 64, CONTROL_PATH_BYTES = 512 };

#define CONTROL_ENVIRONMENT "LINEWARD_GENTL_SIM"
#define CONTROL_MAGIC UINT64_C(0x4d49534c544e4547) /* "GENTLSIM" */

/* clang-format off */
#define CONTROL_FIELDS(X) \
    /* written outside: standing switches */ \
    X(presence) X(life) X(silent) X(slow_us) X(slow_address) X(hang) X(payload_type) X(wrap16) X(first_frame_id) \
    /* written outside: requests */ \
    X(incomplete_wanted) X(short_wanted) X(drop_wanted) X(crash_wanted) X(crash_where) X(line1_edges) \
    /* written here: answers to requests */ \
    X(incomplete_done) X(short_done) X(drop_done) X(crash_done) \
    /* written here: counters */ \
    X(generated) X(delivered) X(underruns) X(triggers) X(triggers_missed) X(line1_seen) X(opens) X(closes) \
    X(starts) X(stops) X(reads) X(writes) X(hung) \
    /* written here: states */ \
    X(announced) X(queued) X(waiting) X(owner) X(last_frame_id) X(last_frame_ns)
/* clang-format on */

#define CONTROL_NAME(name) FIELD_##name,
enum control_field { CONTROL_FIELDS(CONTROL_NAME) FIELD_COUNT };
#undef CONTROL_NAME

enum { PRESENT, LOST, IN_USE, ABSENT };                              /* presence */
enum { HANG_READ = 1, HANG_WRITE = 2, HANG_EVENT = 4, HANG_START = 8, HANG_OPEN = 16 }; /* hang */
enum { SLOW_SEARCH = 1 };                                            /* slow_address that is no register's */
enum { CRASH_AT_FRAME, CRASH_AT_READ };                              /* crash_where */

/* Open the file that the environment names, or private memory without one. False when it is of another version. */
bool control_open(void);
void control_close(void);
unsigned control_devices(void);

uint64_t control_get(unsigned device, enum control_field field);
void control_set(unsigned device, enum control_field field, uint64_t value);
void control_add(unsigned device, enum control_field field, int64_t value);
const char *control_replay_path(unsigned device);

/* Take one from a request: true as many times as was asked for. */
bool control_take(unsigned device, enum control_field wanted, enum control_field done);

/* A lock on a device that holds between processes and dies with its owner. */
bool control_claim(unsigned device);
void control_release(unsigned device);
bool control_claimed_elsewhere(unsigned device);

/* Do as the switches say: block in this call for as long as one says so; be slow; die. */
void control_hang(unsigned device, uint64_t where);
void control_dawdle(unsigned device, uint64_t address);
void control_crash(unsigned device, uint64_t where);

#endif
