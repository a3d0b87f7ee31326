/* The sensor: a thread that waits for the time or a trigger, exposes, and fills a buffer. */
#define _GNU_SOURCE
#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device.h"
#include "pixels.h"

enum { POLL_NS = 1000000, BACKLOG_NS = 100000000 };

uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

bool wait_until(struct device *d, uint64_t when_ns)
{
    const struct timespec when = {(time_t)(when_ns / 1000000000u), (long)(when_ns % 1000000000u)};
    return pthread_cond_timedwait(&d->changed, &d->mutex, &when) == 0;
}

static double number(const struct device *d, enum device_register index)
{
    double value;
    memcpy(&value, &d->registers[index], sizeof value);
    return value;
}

static bool is_running(const struct device *d)
{
    return d->acquiring && !d->stopping;
}

/* Let time pass, however often the condition is signalled meanwhile; false when the acquisition ends first. */
static bool pass(struct device *d, uint64_t until_ns)
{
    while (is_running(d) && monotonic_ns() < until_ns)
        wait_until(d, until_ns);
    return is_running(d);
}

/* Wait for the edge of a trigger; edges of Line1 come from outside and are looked for every millisecond. */
static bool await_trigger(struct device *d)
{
    const unsigned index = d->module.device;
    while (is_running(d) && d->registers[REG_TRIGGER_MODE]) {
        if (d->registers[REG_TRIGGER_SOURCE] == SOURCE_LINE1 &&
            control_get(index, FIELD_line1_seen) < control_get(index, FIELD_line1_edges)) {
            control_add(index, FIELD_line1_seen, 1);
            d->triggered = true;
        }
        if (d->triggered) {
            d->triggered = false;
            control_add(index, FIELD_triggers, 1);
            return true;
        }
        wait_until(d, monotonic_ns() + POLL_NS);
    }
    return false;
}

/* Edges during an exposure find a camera that cannot take them. */
static void miss_edges(struct device *d)
{
    const unsigned index = d->module.device;
    const uint64_t edges = control_get(index, FIELD_line1_edges), seen = control_get(index, FIELD_line1_seen);
    if (d->registers[REG_TRIGGER_SOURCE] == SOURCE_LINE1 && d->registers[REG_TRIGGER_MODE] && edges > seen)
        control_add(index, FIELD_triggers_missed, (int64_t)(edges - seen));
    control_set(index, FIELD_line1_seen, edges);
}

/* Wait for the moment at which the next exposure starts; 0 when there is none. */
static uint64_t next_exposure(struct device *d)
{
    if (d->registers[REG_TRIGGER_MODE]) {
        const bool go = await_trigger(d);
        d->first_ns = 0;
        return go ? monotonic_ns() : 0;
    }
    const double exposure_ns = number(d, REG_EXPOSURE_TIME) * 1e3, rate_ns = 1e9 / number(d, REG_FRAME_RATE);
    const uint64_t period_ns = (uint64_t)(exposure_ns > rate_ns ? exposure_ns : rate_ns);
    const uint64_t now = monotonic_ns();
    uint64_t start = d->first_ns ? d->first_ns + period_ns : now;
    if (start + BACKLOG_NS < now) /* this thread was not run for long: a camera does not catch up for ever */
        start = now;
    d->first_ns = start;
    return pass(d, start) && !d->registers[REG_TRIGGER_MODE] ? start : 0;
}

static uint64_t reported_id(const struct device *d, uint64_t id)
{
    if (!control_get(d->module.device, FIELD_wrap16))
        return id;
    return device_is_gev(d->module.device) ? (id - 1) % 65535 + 1 : id % 65536;
}

static struct frame describe(const struct device *d, uint64_t id, uint64_t start_ns)
{
    const uint64_t *r = d->registers, payload_type = control_get(d->module.device, FIELD_payload_type);
    const size_t image = pixel_image_bytes(pixel_format_find(r[REG_PIXEL_FORMAT]), r[REG_WIDTH], r[REG_HEIGHT], r[REG_PADDING_X]);
    return (struct frame){
        .id = reported_id(d, id),
        .start_ns = start_ns,
        .width = r[REG_WIDTH],
        .height = r[REG_HEIGHT],
        .padding = r[REG_PADDING_X],
        .pixel_format = r[REG_PIXEL_FORMAT],
        .payload_type = payload_type ? payload_type : PAYLOAD_TYPE_IMAGE,
        .image_bytes = image,
        .bytes = image + (r[REG_CHUNK_MODE] ? CHUNK_TRAILER_BYTES : 0),
        .has_chunks = r[REG_CHUNK_MODE] != 0,
    };
}

static uint8_t *put_tag(uint32_t id, size_t length, uint8_t *out)
{
    const uint32_t tag[2] = {htobe32(id), htobe32((uint32_t)length)};
    memcpy(out, tag, sizeof tag);
    return out + sizeof tag;
}

/* Chunks as GigE Vision sends them: data, then id and length, big-endian, so that they can be read from the end. The
 * image is the first of them. */
static void put_chunks(const struct frame *frame, uint64_t exposure, uint8_t *out)
{
    const uint64_t values[CHUNK_COUNT] = {frame->id, frame->start_ns, exposure};
    out = put_tag(0x1000, frame->image_bytes, out);
    for (uint32_t i = 0; i < CHUNK_COUNT; i++) {
        memcpy(out, &values[i], sizeof values[i]);
        out = put_tag(0x1001 + i, sizeof values[i], out + sizeof values[i]);
    }
}

/* Write what the camera sends; what a broken transfer leaves out stays as an older frame left it. */
static void fill(struct device *d, struct buffer *buffer, uint64_t number_of_frame, uint64_t exposure)
{
    struct frame *frame = &buffer->frame;
    const size_t image = frame->image_bytes < frame->filled ? frame->image_bytes : frame->filled;
    if (d->registers[REG_TEST_PATTERN] == PATTERN_FRAME_ID)
        pixel_stamp((uint32_t)number_of_frame, buffer->base, image);
    else
        memcpy(buffer->base, d->picture + d->exposures % d->pictures * frame->image_bytes, image);
    if (frame->has_chunks && frame->filled == frame->bytes)
        put_chunks(frame, exposure, buffer->base + frame->image_bytes);
    if (frame->payload_type == PAYLOAD_TYPE_GENDC && image >= 4)
        memcpy(buffer->base, "GNDC", 4);
}

/* An exposure is over: number it and hand it over, unless the control says what befalls it. */
static void make_frame(struct device *d, uint64_t start_ns)
{
    const unsigned index = d->module.device;
    if (control_get(index, FIELD_silent) || device_is_gone(d))
        return;
    control_crash(index, CRASH_AT_FRAME);
    const uint64_t id = d->next_id++, exposure = d->registers[REG_EXPOSURE_TIME];
    control_add(index, FIELD_generated, 1);
    control_set(index, FIELD_last_frame_id, id);
    control_set(index, FIELD_last_frame_ns, start_ns);
    struct buffer *buffer = control_take(index, FIELD_drop_wanted, FIELD_drop_done) ? NULL : stream_take(d);
    if (buffer != NULL) {
        struct frame *frame = &buffer->frame;
        *frame = describe(d, id, start_ns);
        frame->filled = frame->bytes;
        if (frame->bytes > buffer->size) {
            frame->filled = buffer->size;
            frame->incomplete = frame->too_large = true;
        } else if (control_take(index, FIELD_incomplete_wanted, FIELD_incomplete_done)) {
            frame->filled = frame->bytes / 2;
            frame->incomplete = true;
        } else if (control_take(index, FIELD_short_wanted, FIELD_short_done)) {
            frame->filled = frame->bytes / 2; /* as producers do that report no incomplete buffers */
        }
        d->filling = true;
        pthread_mutex_unlock(&d->mutex); /* copying takes its time, and consumers do not wait for it */
        fill(d, buffer, id, exposure);
        pthread_mutex_lock(&d->mutex);
        d->filling = false;
        stream_deliver(d, buffer);
    }
    d->exposures++;
    if (d->frames_left && --d->frames_left == 0)
        camera_stop(d);
}

static void *expose(void *argument)
{
    struct device *d = argument;
    pthread_mutex_lock(&d->mutex);
    while (!d->stopping) {
        if (!d->acquiring) {
            pthread_cond_wait(&d->changed, &d->mutex);
            continue;
        }
        const uint64_t start_ns = next_exposure(d);
        if (!start_ns)
            continue;
        d->exposing = true;
        const bool whole = pass(d, start_ns + (uint64_t)(number(d, REG_EXPOSURE_TIME) * 1e3));
        d->exposing = false;
        if (whole) {
            make_frame(d, start_ns);
            miss_edges(d);
        }
    }
    pthread_mutex_unlock(&d->mutex);
    return NULL;
}

bool camera_begin(struct device *d)
{
    d->stopping = false;
    d->grabbing = pthread_create(&d->thread, NULL, expose, d) == 0;
    return d->grabbing;
}

void camera_end(struct device *d)
{
    if (!d->grabbing)
        return;
    d->stopping = true;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->mutex);
    pthread_join(d->thread, NULL);
    pthread_mutex_lock(&d->mutex);
    d->grabbing = d->stopping = false;
    camera_stop(d);
    pthread_cond_broadcast(&d->changed);
}

/* Read the file that the control names: raw images, one after the other, in the format that is set now. */
static uint8_t *read_pictures(const char *path, size_t image_bytes, size_t *pictures)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return NULL;
    uint8_t *memory = NULL;
    if (fseek(file, 0, SEEK_END) == 0) {
        *pictures = (size_t)ftell(file) / image_bytes;
        rewind(file);
        memory = *pictures ? malloc(*pictures * image_bytes) : NULL;
    }
    if (memory != NULL && fread(memory, image_bytes, *pictures, file) != *pictures) {
        free(memory);
        memory = NULL;
    }
    fclose(file);
    return memory;
}

GC_ERROR camera_start(struct device *d)
{
    const unsigned index = d->module.device;
    if (d->acquiring)
        return GC_ERR_SUCCESS;
    while (d->filling) /* from the picture that is replaced here */
        pthread_cond_wait(&d->changed, &d->mutex);
    const struct frame like = describe(d, 0, 0);
    d->pictures = 1;
    free(d->picture);
    d->picture = NULL;
    if (d->registers[REG_TEST_PATTERN] == PATTERN_FILE) {
        d->picture = read_pictures(control_replay_path(index), like.image_bytes, &d->pictures);
        if (d->picture == NULL)
            return fail(GC_ERR_INVALID_VALUE, "the file to replay holds no whole image of this size");
    } else if (d->registers[REG_TEST_PATTERN] == PATTERN_GRADIENT) {
        d->picture = malloc(like.image_bytes);
        if (d->picture == NULL)
            return fail(GC_ERR_RESOURCE_EXHAUSTED, "no memory for a picture");
        pixel_gradient(pixel_format_find(like.pixel_format), like.width, like.height, like.padding, d->picture);
    }
    const uint64_t mode = d->registers[REG_ACQUISITION_MODE], first = control_get(index, FIELD_first_frame_id);
    d->frames_left = mode == MODE_SINGLE ? 1 : mode == MODE_MULTI ? d->registers[REG_FRAME_COUNT] : 0;
    d->next_id = first || !device_is_gev(index) ? first : 1;
    d->first_ns = d->exposures = 0;
    d->triggered = false;
    control_set(index, FIELD_line1_seen, control_get(index, FIELD_line1_edges)); /* edges before are nobody's */
    d->acquiring = true;
    control_add(index, FIELD_starts, 1);
    pthread_cond_broadcast(&d->changed);
    return GC_ERR_SUCCESS;
}

void camera_stop(struct device *d)
{
    if (!d->acquiring)
        return;
    d->acquiring = false;
    control_add(d->module.device, FIELD_stops, 1);
    pthread_cond_broadcast(&d->changed);
}

void camera_trigger(struct device *d)
{
    const bool ready = d->acquiring && d->registers[REG_TRIGGER_MODE] &&
                       d->registers[REG_TRIGGER_SOURCE] == SOURCE_SOFTWARE && !d->exposing && !d->triggered;
    d->triggered = d->triggered || ready;
    if (!ready)
        control_add(d->module.device, FIELD_triggers_missed, 1);
    pthread_cond_broadcast(&d->changed);
}
