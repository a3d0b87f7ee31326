/* One simulated camera: its registers, its sensor's thread, its buffers. device.c, camera.c and stream.c share it. */
#ifndef SIM_DEVICE_H
#define SIM_DEVICE_H

#include <pthread.h>
#include <stdbool.h>

#include "control.h"
#include "gentl.h"

/* Every handle points to a module: a handle of another kind is told apart, one that was closed is not open. */
enum kind { KIND_SYSTEM = 0x51A0, KIND_INTERFACE, KIND_DEVICE, KIND_REMOTE, KIND_STREAM, KIND_BUFFER, KIND_EVENT };

struct module {
    enum kind kind;
    bool open;
    unsigned device; /* index, for all kinds below the interface */
};

/* Registers of the remote device: 8 bytes each, little-endian, at REGISTER_BASE + 8 * index. The order is device.xml's. */
enum {
    REGISTER_BASE = 0x10000,
    STRING_BASE = 0x1000, /* vendor, model, version, serial number, user id */
    STRING_BYTES = 64,
    XML_BASE = 0x100000,
};
enum string_register { TEXT_VENDOR, TEXT_MODEL, TEXT_VERSION, TEXT_SERIAL, TEXT_USER_ID, TEXT_COUNT };
enum device_register {
    REG_WIDTH, REG_HEIGHT, REG_WIDTH_MAX, REG_HEIGHT_MAX, REG_WIDTH_INC, REG_HEIGHT_INC, REG_PIXEL_FORMAT,
    REG_PADDING_X, REG_TEST_PATTERN, REG_PAYLOAD_SIZE, REG_EXPOSURE_TIME, REG_GAIN, REG_ACQUISITION_MODE,
    REG_FRAME_COUNT, REG_FRAME_RATE, REG_ACQUISITION_START, REG_ACQUISITION_STOP, REG_TRIGGER_SELECTOR,
    REG_TRIGGER_MODE, REG_TRIGGER_SOURCE, REG_TRIGGER_SOFTWARE, REG_TEMPERATURE, REG_TIMESTAMP_LATCH,
    REG_TIMESTAMP_VALUE, REG_CHUNK_MODE, REG_TL_LOCKED, REG_COUNT
};
enum { PATTERN_GRADIENT, PATTERN_FRAME_ID, PATTERN_FILE };
enum { MODE_CONTINUOUS, MODE_SINGLE, MODE_MULTI };
enum { SOURCE_SOFTWARE, SOURCE_LINE1 };

/* Registers of the data stream, in stream.xml's order; the modes are SFNC's StreamBufferHandlingMode. */
enum stream_register { STREAM_REG_HANDLING, STREAM_REG_COUNT };
enum { OLDEST_FIRST, OLDEST_FIRST_OVERWRITE, NEWEST_ONLY };

enum buffer_state { BUFFER_FREE, BUFFER_INPUT, BUFFER_FILLING, BUFFER_OUTPUT, BUFFER_DELIVERED };
enum { MAX_BUFFERS = 64, CHUNK_COUNT = 3, CHUNK_TAG_BYTES = 8, CHUNK_BYTES = 16,
       CHUNK_TRAILER_BYTES = CHUNK_TAG_BYTES + CHUNK_COUNT * CHUNK_BYTES };

/* What is known of the frame in a buffer. */
struct frame {
    uint64_t id, start_ns, width, height, padding, pixel_format, payload_type;
    size_t image_bytes, bytes, filled;
    bool incomplete, too_large, has_chunks;
};

struct buffer {
    struct module module;
    uint8_t *base;
    size_t size;
    void *user;
    enum buffer_state state;
    uint64_t order; /* within its queue: lowest first */
    bool new_data;
    struct frame frame;
};

struct device {
    struct module module, remote, stream, event;
    uint64_t life; /* a camera that lost its power knows nothing of those who had opened it before */
    bool listed;
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* anything that the sensor's thread or a waiting consumer may wait for */

    uint64_t registers[REG_COUNT];
    uint64_t stream_registers[STREAM_REG_COUNT];
    char user_id[STRING_BYTES];

    /* The sensor. */
    pthread_t thread;
    bool grabbing;  /* the stream is started */
    bool acquiring; /* the camera is started */
    bool stopping;
    bool exposing, triggered, filling;
    uint64_t next_id, frames_left, first_ns, exposures;
    uint8_t *picture; /* rendered or read when the acquisition starts */
    size_t pictures;  /* how many follow each other in `picture` */

    /* The stream. */
    struct buffer buffers[MAX_BUFFERS];
    uint64_t order, fired, underruns, delivered, started;
};

extern struct device devices[CONTROL_MAX_DEVICES];

const char *device_text(unsigned index, enum string_register which);
const char *device_transport(unsigned index);
bool device_is_gev(unsigned index);
void device_setup(unsigned index);
GC_ERROR device_open(struct device *d);
void device_close(struct device *d);

/* Lost or restarted since it was opened. */
bool device_is_gone(const struct device *d);
GC_ERROR device_read(struct device *d, uint64_t address, void *data, size_t size);
GC_ERROR device_write(struct device *d, uint64_t address, const void *data, size_t size);

/* The thread of the sensor runs while the stream is started. The caller holds the mutex in all of these. */
bool camera_begin(struct device *d);
void camera_end(struct device *d);
GC_ERROR camera_start(struct device *d);
void camera_stop(struct device *d);
void camera_trigger(struct device *d);
uint64_t monotonic_ns(void);
bool wait_until(struct device *d, uint64_t when_ns); /* false when the time has come */

/* Queues; the caller holds the mutex. */
struct buffer *stream_take(struct device *d);
void stream_deliver(struct device *d, struct buffer *buffer);
void stream_count(struct device *d);
void stream_close(struct device *d);
unsigned stream_buffers(const struct device *d, enum buffer_state state);

/* Answers of every exported function; the last error is kept for each thread. */
GC_ERROR fail(GC_ERROR code, const char *why);
GC_ERROR give(INFO_DATATYPE kind, const void *value, size_t size, INFO_DATATYPE *type, void *out, size_t *out_size);
GC_ERROR give_text(const char *text, INFO_DATATYPE *type, void *out, size_t *size);
GC_ERROR give_number(INFO_DATATYPE kind, uint64_t value, INFO_DATATYPE *type, void *out, size_t *size);
struct module *module_of(void *handle, enum kind kind);

#endif
