#define _GNU_SOURCE
#include "device.h"

#include <string.h>
#include <time.h>

#include "pixels.h"

struct device devices[CONTROL_MAX_DEVICES];

/* The third speaks "GEV", so that consumers take its frame numbers for GigE block ids, which skip 0; the second takes
 * sizes only in steps, as most sensors do. */
static const struct identity {
    const char *model, *serial, *user_id, *transport;
    uint64_t width_inc, height_inc;
} identities[CONTROL_MAX_DEVICES] = {
    {"Sim 640", "SIM-A", "left", "Custom", 1, 1}, {"Sim 640", "SIM-B", "right", "Custom", 4, 2},
    {"Sim GigE", "SIM-C", "top", "GEV", 1, 1},    {"Sim 640", "SIM-D", "", "Custom", 1, 1},
    {"Sim 640", "SIM-E", "", "Custom", 1, 1},     {"Sim 640", "SIM-F", "", "Custom", 1, 1},
    {"Sim 640", "SIM-G", "", "Custom", 1, 1},     {"Sim 640", "SIM-H", "", "Custom", 1, 1},
};

enum access { READ_ONLY, ANY_TIME, WHEN_STOPPED };

static const enum access accesses[REG_COUNT] = {
    [REG_WIDTH] = WHEN_STOPPED,       [REG_HEIGHT] = WHEN_STOPPED,       [REG_PIXEL_FORMAT] = WHEN_STOPPED,
    [REG_PADDING_X] = WHEN_STOPPED,   [REG_TEST_PATTERN] = WHEN_STOPPED, [REG_CHUNK_MODE] = WHEN_STOPPED,
    [REG_EXPOSURE_TIME] = ANY_TIME,   [REG_GAIN] = ANY_TIME,             [REG_ACQUISITION_MODE] = WHEN_STOPPED,
    [REG_FRAME_COUNT] = WHEN_STOPPED, [REG_FRAME_RATE] = ANY_TIME,       [REG_ACQUISITION_START] = ANY_TIME,
    [REG_ACQUISITION_STOP] = ANY_TIME, [REG_TRIGGER_SELECTOR] = ANY_TIME, [REG_TRIGGER_MODE] = ANY_TIME,
    [REG_TRIGGER_SOURCE] = ANY_TIME,  [REG_TRIGGER_SOFTWARE] = ANY_TIME, [REG_TIMESTAMP_LATCH] = ANY_TIME,
    [REG_TL_LOCKED] = ANY_TIME,
};

static uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

const char *device_text(unsigned index, enum string_register which)
{
    switch (which) {
    case TEXT_VENDOR:
        return "Lineward Simulations";
    case TEXT_MODEL:
        return identities[index].model;
    case TEXT_VERSION:
        return "1.0";
    case TEXT_SERIAL:
        return identities[index].serial;
    default:
        return devices[index].user_id;
    }
}

const char *device_transport(unsigned index)
{
    return identities[index].transport;
}

bool device_is_gev(unsigned index)
{
    return strcmp(identities[index].transport, "GEV") == 0;
}

static void power_up(struct device *d)
{
    const unsigned index = d->module.device;
    memset(d->registers, 0, sizeof d->registers);
    d->registers[REG_WIDTH] = 640;
    d->registers[REG_HEIGHT] = 480;
    d->registers[REG_WIDTH_MAX] = 4096;
    d->registers[REG_HEIGHT_MAX] = 4096;
    d->registers[REG_WIDTH_INC] = identities[index].width_inc;
    d->registers[REG_HEIGHT_INC] = identities[index].height_inc;
    d->registers[REG_PIXEL_FORMAT] = 0x01080001; /* Mono8 */
    d->registers[REG_EXPOSURE_TIME] = bits_of(1000.0);
    d->registers[REG_FRAME_COUNT] = 1;
    d->registers[REG_FRAME_RATE] = bits_of(30.0);
    strcpy(d->user_id, identities[index].user_id);
    d->life = control_get(index, FIELD_life);
}

void device_setup(unsigned index)
{
    struct device *d = &devices[index];
    memset(d, 0, sizeof *d);
    d->module = (struct module){KIND_DEVICE, false, index};
    d->remote = (struct module){KIND_REMOTE, false, index};
    d->stream = (struct module){KIND_STREAM, false, index};
    d->event = (struct module){KIND_EVENT, false, index};
    for (size_t i = 0; i < MAX_BUFFERS; i++)
        d->buffers[i].module = (struct module){KIND_BUFFER, false, index};
    pthread_mutex_init(&d->mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&d->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    power_up(d);
}

GC_ERROR device_open(struct device *d)
{
    const unsigned index = d->module.device;
    const uint64_t presence = control_get(index, FIELD_presence);
    if (presence == LOST || presence == ABSENT)
        return fail(GC_ERR_IO, "the device does not answer");
    if (presence == IN_USE || d->module.open || !control_claim(index))
        return fail(GC_ERR_RESOURCE_IN_USE, "the device is in use");
    control_hang(index, HANG_OPEN);
    if (d->life != control_get(index, FIELD_life))
        power_up(d);
    d->module.open = d->remote.open = true;
    control_add(index, FIELD_opens, 1);
    return GC_ERR_SUCCESS;
}

void device_close(struct device *d)
{
    if (!d->module.open)
        return;
    stream_close(d);
    d->module.open = d->remote.open = false;
    d->registers[REG_TL_LOCKED] = 0;
    control_add(d->module.device, FIELD_closes, 1);
    control_release(d->module.device);
}

bool device_is_gone(const struct device *d)
{
    const uint64_t presence = control_get(d->module.device, FIELD_presence);
    return presence == LOST || presence == ABSENT || d->life != control_get(d->module.device, FIELD_life);
}

static uint64_t payload_bytes(const struct device *d)
{
    const struct pixel_format *format = pixel_format_find(d->registers[REG_PIXEL_FORMAT]);
    return pixel_image_bytes(format, d->registers[REG_WIDTH], d->registers[REG_HEIGHT], d->registers[REG_PADDING_X]) +
           (d->registers[REG_CHUNK_MODE] ? CHUNK_TRAILER_BYTES : 0);
}

static uint64_t read_register(struct device *d, enum device_register index)
{
    switch (index) {
    case REG_PAYLOAD_SIZE:
        return payload_bytes(d);
    case REG_TEMPERATURE: /* another one at every reading: a value from a cache is seen */
        d->registers[REG_TEMPERATURE]++;
        return bits_of(40.0 + (double)(d->registers[REG_TEMPERATURE] % 64) / 64.0);
    default:
        return d->registers[index];
    }
}

static bool in_steps(uint64_t value, uint64_t low, uint64_t high, uint64_t step)
{
    return value >= low && value <= high && value % step == 0;
}

static bool in_range(uint64_t bits, double low, double high)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value >= low && value <= high;
}

/* The ranges that device.xml declares: a consumer that does not look there is refused all the same. */
static bool is_acceptable(const struct device *d, enum device_register index, uint64_t value)
{
    switch (index) {
    case REG_WIDTH:
        return in_steps(value, 4, d->registers[REG_WIDTH_MAX], d->registers[REG_WIDTH_INC]);
    case REG_HEIGHT:
        return in_steps(value, 2, d->registers[REG_HEIGHT_MAX], d->registers[REG_HEIGHT_INC]);
    case REG_PIXEL_FORMAT:
        return pixel_format_find(value) != NULL;
    case REG_PADDING_X:
        return value <= 64;
    case REG_EXPOSURE_TIME:
        return in_range(value, 10.0, 1000000.0);
    case REG_FRAME_RATE:
        return in_range(value, 0.1, 1000.0);
    default:
        return true;
    }
}

static GC_ERROR write_register(struct device *d, enum device_register index, uint64_t value)
{
    if (accesses[index] == READ_ONLY || (accesses[index] == WHEN_STOPPED && d->acquiring))
        return fail(GC_ERR_ACCESS_DENIED, "the register cannot be written now");
    if (!is_acceptable(d, index, value))
        return fail(GC_ERR_INVALID_VALUE, "the value is out of range");
    switch (index) {
    case REG_ACQUISITION_START:
        return camera_start(d);
    case REG_ACQUISITION_STOP:
        camera_stop(d);
        return GC_ERR_SUCCESS;
    case REG_TRIGGER_SOFTWARE:
        camera_trigger(d);
        return GC_ERR_SUCCESS;
    case REG_TIMESTAMP_LATCH:
        d->registers[REG_TIMESTAMP_VALUE] = monotonic_ns();
        return GC_ERR_SUCCESS;
    default:
        d->registers[index] = value;
        pthread_cond_broadcast(&d->changed); /* a new frame rate holds from now on */
        return GC_ERR_SUCCESS;
    }
}

static char *text_at(struct device *d, uint64_t address, size_t size, char *scratch)
{
    const uint64_t which = (address - STRING_BASE) / STRING_BYTES;
    if (address < STRING_BASE || which >= TEXT_COUNT || address % STRING_BYTES || size > STRING_BYTES)
        return NULL;
    return which == TEXT_USER_ID ? d->user_id
                                 : strncpy(scratch, device_text(d->module.device, (enum string_register)which), STRING_BYTES);
}

static bool is_register(uint64_t address, size_t size)
{
    return address >= REGISTER_BASE && address < REGISTER_BASE + 8 * REG_COUNT && address % 8 == 0 && size == 8;
}

/* Waits that the control asks for come before the lock: a hung read must not hang the sensor. */
static GC_ERROR reach(struct device *d, uint64_t address, uint64_t hang)
{
    const unsigned index = d->module.device;
    control_add(index, hang == HANG_READ ? FIELD_reads : FIELD_writes, 1);
    control_hang(index, hang);
    control_dawdle(index, address);
    return device_is_gone(d) ? fail(GC_ERR_IO, "the device does not answer") : GC_ERR_SUCCESS;
}

GC_ERROR device_read(struct device *d, uint64_t address, void *data, size_t size)
{
    control_crash(d->module.device, CRASH_AT_READ);
    const GC_ERROR unreachable = reach(d, address, HANG_READ);
    if (unreachable)
        return unreachable;
    char scratch[STRING_BYTES];
    pthread_mutex_lock(&d->mutex);
    const char *text = text_at(d, address, size, scratch);
    GC_ERROR result = GC_ERR_SUCCESS;
    if (text != NULL) {
        memcpy(data, text, size);
    } else if (is_register(address, size)) {
        const uint64_t value = read_register(d, (enum device_register)((address - REGISTER_BASE) / 8));
        memcpy(data, &value, sizeof value);
    } else {
        result = fail(GC_ERR_INVALID_ADDRESS, "there is no register");
    }
    pthread_mutex_unlock(&d->mutex);
    return result;
}

GC_ERROR device_write(struct device *d, uint64_t address, const void *data, size_t size)
{
    const GC_ERROR unreachable = reach(d, address, HANG_WRITE);
    if (unreachable)
        return unreachable;
    pthread_mutex_lock(&d->mutex);
    GC_ERROR result;
    if (address == STRING_BASE + TEXT_USER_ID * STRING_BYTES && size <= STRING_BYTES) {
        memset(d->user_id, 0, STRING_BYTES);
        memcpy(d->user_id, data, size < STRING_BYTES ? size : STRING_BYTES - 1);
        result = GC_ERR_SUCCESS;
    } else if (is_register(address, size)) {
        uint64_t value;
        memcpy(&value, data, sizeof value);
        result = write_register(d, (enum device_register)((address - REGISTER_BASE) / 8), value);
    } else {
        result = fail(GC_ERR_INVALID_ADDRESS, "there is no register to write");
    }
    pthread_mutex_unlock(&d->mutex);
    return result;
}
