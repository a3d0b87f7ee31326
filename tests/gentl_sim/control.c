#define _GNU_SOURCE
#include "control.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DEFAULT_DEVICES = 3 };

struct control_device {
    _Atomic uint64_t words[CONTROL_WORDS];
    char replay_path[CONTROL_PATH_BYTES];
};

struct control_file {
    uint64_t magic;
    uint64_t version;
    uint64_t devices;
    uint64_t reserved[61];
    struct control_device device[CONTROL_MAX_DEVICES];
};

_Static_assert((int)FIELD_COUNT <= (int)CONTROL_WORDS, "the layout has no more words than this");

static struct control_file *control;
static int control_fd = -1;

/* The other side compares these names with its own before it trusts the layout. */
#define CONTROL_NAME(name) #name " "
__attribute__((visibility("default"))) const char SimControlFields[] = CONTROL_FIELDS(CONTROL_NAME);
#undef CONTROL_NAME

bool control_open(void)
{
    const char *path = getenv(CONTROL_ENVIRONMENT);
    const int shared = path != NULL && *path != '\0';
    control_fd = shared ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (shared && control_fd < 0)
        return false;
    struct stat file;
    if (shared && (fstat(control_fd, &file) != 0 || (size_t)file.st_size < sizeof *control)) {
        control_close();
        return false;
    }
    void *memory = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE,
                        shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, control_fd, 0);
    if (memory == MAP_FAILED) {
        control_close();
        return false;
    }
    control = memory;
    if (!shared) {
        control->magic = CONTROL_MAGIC;
        control->version = CONTROL_VERSION;
        control->devices = DEFAULT_DEVICES;
    }
    if (control->magic == CONTROL_MAGIC && control->version == CONTROL_VERSION &&
        control->devices <= CONTROL_MAX_DEVICES)
        return true;
    control_close();
    return false;
}

void control_close(void)
{
    if (control != NULL)
        munmap(control, sizeof *control);
    if (control_fd >= 0)
        close(control_fd);
    control = NULL;
    control_fd = -1;
}

unsigned control_devices(void)
{
    return (unsigned)control->devices;
}

uint64_t control_get(unsigned device, enum control_field field)
{
    return atomic_load(&control->device[device].words[field]);
}

void control_set(unsigned device, enum control_field field, uint64_t value)
{
    atomic_store(&control->device[device].words[field], value);
}

void control_add(unsigned device, enum control_field field, int64_t value)
{
    atomic_fetch_add(&control->device[device].words[field], (uint64_t)value);
}

const char *control_replay_path(unsigned device)
{
    return control->device[device].replay_path;
}

bool control_take(unsigned device, enum control_field wanted, enum control_field done)
{
    if (control_get(device, done) >= control_get(device, wanted))
        return false;
    control_add(device, done, 1);
    return true;
}

/* Locks of the open file description, not of the process: the kernel lifts them when the process dies, and two copies
 * of this library in one process exclude each other too. */
static struct flock lock_of(unsigned device, short type)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)device, .l_len = 1};
}

bool control_claim(unsigned device)
{
    struct flock lock = lock_of(device, F_WRLCK);
    if (control_fd >= 0 && fcntl(control_fd, F_OFD_SETLK, &lock) != 0)
        return false;
    control_set(device, FIELD_owner, (uint64_t)getpid());
    return true;
}

void control_release(unsigned device)
{
    struct flock lock = lock_of(device, F_UNLCK);
    control_set(device, FIELD_owner, 0);
    if (control_fd >= 0)
        fcntl(control_fd, F_OFD_SETLK, &lock);
}

bool control_claimed_elsewhere(unsigned device)
{
    struct flock lock = lock_of(device, F_WRLCK);
    return control_fd >= 0 && fcntl(control_fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static void sleep_us(uint64_t microseconds)
{
    nanosleep(&(struct timespec){(time_t)(microseconds / 1000000), (long)(microseconds % 1000000) * 1000}, NULL);
}

void control_hang(unsigned device, uint64_t where)
{
    if (!(control_get(device, FIELD_hang) & where))
        return;
    control_add(device, FIELD_hung, 1);
    while (control_get(device, FIELD_hang) & where)
        sleep_us(1000);
    control_add(device, FIELD_hung, -1);
}

void control_dawdle(unsigned device, uint64_t address)
{
    const uint64_t only = control_get(device, FIELD_slow_address);
    if (only == 0 || only == address)
        sleep_us(control_get(device, FIELD_slow_us));
}

void control_crash(unsigned device, uint64_t where)
{
    if (control_get(device, FIELD_crash_where) == where && control_take(device, FIELD_crash_wanted, FIELD_crash_done))
        raise(SIGSEGV); /* counted before: the process that follows this one lives on */
}
