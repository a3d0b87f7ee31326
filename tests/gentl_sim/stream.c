/* The data stream: announced buffers, the input pool, the output queue and its event. */
#include <stdlib.h>
#include <string.h>

#include "device.h"

static bool is_in(const struct buffer *buffer, enum buffer_state state)
{
    return buffer->module.open && buffer->state == state;
}

unsigned stream_buffers(const struct device *d, enum buffer_state state)
{
    unsigned count = 0;
    for (size_t i = 0; i < MAX_BUFFERS; i++)
        count += is_in(&d->buffers[i], state);
    return count;
}

static unsigned announced(const struct device *d)
{
    unsigned count = 0;
    for (size_t i = 0; i < MAX_BUFFERS; i++)
        count += d->buffers[i].module.open;
    return count;
}

void stream_count(struct device *d)
{
    const unsigned index = d->module.device;
    control_set(index, FIELD_announced, announced(d));
    control_set(index, FIELD_queued, stream_buffers(d, BUFFER_INPUT) + stream_buffers(d, BUFFER_FILLING));
    control_set(index, FIELD_waiting, stream_buffers(d, BUFFER_OUTPUT));
}

static struct buffer *oldest(struct device *d, enum buffer_state state)
{
    struct buffer *found = NULL;
    for (size_t i = 0; i < MAX_BUFFERS; i++)
        if (is_in(&d->buffers[i], state) && (found == NULL || d->buffers[i].order < found->order))
            found = &d->buffers[i];
    return found;
}

static void move(struct device *d, struct buffer *buffer, enum buffer_state state)
{
    buffer->state = state;
    buffer->order = ++d->order;
    if (state == BUFFER_INPUT)
        buffer->new_data = false;
}

struct buffer *stream_take(struct device *d)
{
    struct buffer *buffer = oldest(d, BUFFER_INPUT);
    if (buffer == NULL && d->stream_registers[STREAM_REG_HANDLING] != OLDEST_FIRST)
        buffer = oldest(d, BUFFER_OUTPUT);
    d->started++;
    if (buffer != NULL) {
        move(d, buffer, BUFFER_FILLING);
    } else {
        d->underruns++;
        control_add(d->module.device, FIELD_underruns, 1);
    }
    return buffer;
}

void stream_deliver(struct device *d, struct buffer *buffer)
{
    if (d->stream_registers[STREAM_REG_HANDLING] == NEWEST_ONLY)
        for (size_t i = 0; i < MAX_BUFFERS; i++)
            if (is_in(&d->buffers[i], BUFFER_OUTPUT))
                move(d, &d->buffers[i], BUFFER_INPUT);
    move(d, buffer, BUFFER_OUTPUT);
    buffer->new_data = true;
    d->delivered++;
    d->fired++;
    control_add(d->module.device, FIELD_delivered, 1);
    stream_count(d);
    pthread_cond_broadcast(&d->changed);
}

void stream_close(struct device *d)
{
    pthread_mutex_lock(&d->mutex);
    camera_end(d);
    for (size_t i = 0; i < MAX_BUFFERS; i++)
        d->buffers[i].module.open = false;
    d->stream.open = d->event.open = false;
    stream_count(d);
    free(d->picture);
    d->picture = NULL;
    pthread_cond_broadcast(&d->changed); /* who waits for a frame is told that there is no stream any more */
    pthread_mutex_unlock(&d->mutex);
}

/* The device of a stream's or an event's handle, locked; NULL when the handle is none. */
static struct device *lock(void *handle, enum kind kind)
{
    const struct module *module = module_of(handle, kind);
    if (module == NULL)
        return NULL;
    struct device *d = &devices[module->device];
    pthread_mutex_lock(&d->mutex);
    return d;
}

static GC_ERROR unlock(struct device *d, GC_ERROR result)
{
    stream_count(d);
    pthread_mutex_unlock(&d->mutex);
    return result;
}

static const char NO_STREAM[] = "no open data stream has this handle";

GC_API DevOpenDataStream(void *device, const char *id, void **stream)
{
    struct device *d = lock(device, KIND_DEVICE);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "no open device has this handle");
    if (strcmp(id, "Stream0") != 0)
        return unlock(d, fail(GC_ERR_INVALID_ID, "the only stream is Stream0"));
    if (d->stream.open)
        return unlock(d, fail(GC_ERR_RESOURCE_IN_USE, "the stream is open"));
    d->stream.open = true;
    d->underruns = d->delivered = d->started = d->fired = 0;
    d->stream_registers[STREAM_REG_HANDLING] = OLDEST_FIRST;
    *stream = &d->stream;
    return unlock(d, GC_ERR_SUCCESS);
}

GC_API DSClose(void *stream)
{
    const struct module *module = module_of(stream, KIND_STREAM);
    if (module == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    stream_close(&devices[module->device]);
    return GC_ERR_SUCCESS;
}

GC_API DSAnnounceBuffer(void *stream, void *memory, size_t size, void *user, void **handle)
{
    struct device *d = lock(stream, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    for (size_t i = 0; i < MAX_BUFFERS; i++) {
        struct buffer *buffer = &d->buffers[i];
        if (!buffer->module.open) {
            const struct module module = {KIND_BUFFER, true, d->module.device};
            *buffer = (struct buffer){.module = module, .base = memory, .size = size, .user = user};
            *handle = buffer;
            return unlock(d, GC_ERR_SUCCESS);
        }
    }
    return unlock(d, fail(GC_ERR_RESOURCE_EXHAUSTED, "too many buffers"));
}

GC_API DSQueueBuffer(void *stream, void *handle)
{
    struct device *d = lock(stream, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    struct buffer *buffer = (struct buffer *)module_of(handle, KIND_BUFFER);
    if (buffer == NULL)
        return unlock(d, fail(GC_ERR_INVALID_HANDLE, "no such buffer is announced"));
    if (buffer->state != BUFFER_FREE && buffer->state != BUFFER_DELIVERED)
        return unlock(d, fail(GC_ERR_RESOURCE_IN_USE, "the buffer is queued"));
    move(d, buffer, BUFFER_INPUT);
    return unlock(d, GC_ERR_SUCCESS);
}

GC_API DSRevokeBuffer(void *stream, void *handle, void **memory, void **user)
{
    struct device *d = lock(stream, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    struct buffer *buffer = (struct buffer *)module_of(handle, KIND_BUFFER);
    if (buffer == NULL)
        return unlock(d, fail(GC_ERR_INVALID_HANDLE, "no such buffer is announced"));
    if (buffer->state != BUFFER_FREE && buffer->state != BUFFER_DELIVERED)
        return unlock(d, fail(GC_ERR_BUSY, "the buffer is queued"));
    if (memory != NULL)
        *memory = buffer->base;
    if (user != NULL)
        *user = buffer->user;
    buffer->module.open = false;
    return unlock(d, GC_ERR_SUCCESS);
}

GC_API DSFlushQueue(void *stream, int32_t what)
{
    struct device *d = lock(stream, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    for (size_t i = 0; i < MAX_BUFFERS; i++) {
        struct buffer *buffer = &d->buffers[i];
        while (is_in(buffer, BUFFER_FILLING)) /* takes as long as one copy */
            pthread_cond_wait(&d->changed, &d->mutex);
        const bool in = is_in(buffer, BUFFER_INPUT), out = is_in(buffer, BUFFER_OUTPUT);
        if (what == ACQ_QUEUE_INPUT_TO_OUTPUT && in)
            move(d, buffer, BUFFER_OUTPUT);
        else if ((what == ACQ_QUEUE_OUTPUT_DISCARD && out) || (what == ACQ_QUEUE_ALL_DISCARD && (in || out)))
            move(d, buffer, BUFFER_FREE);
        else if ((what == ACQ_QUEUE_ALL_TO_INPUT && !in) || (what == ACQ_QUEUE_UNQUEUED_TO_INPUT && !in && !out))
            move(d, buffer, BUFFER_INPUT);
    }
    return unlock(d, GC_ERR_SUCCESS);
}

GC_API DSStartAcquisition(void *stream, int32_t flags, uint64_t frames)
{
    (void)flags, (void)frames; /* consumers stop by themselves; harvesters always asks for endless */
    const struct module *module = module_of(stream, KIND_STREAM);
    if (module != NULL)
        control_hang(module->device, HANG_START);
    struct device *d = lock(stream, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    if (d->grabbing)
        return unlock(d, fail(GC_ERR_RESOURCE_IN_USE, "the stream is started"));
    if (device_is_gone(d))
        return unlock(d, fail(GC_ERR_IO, "the device does not answer"));
    return unlock(d, camera_begin(d) ? GC_ERR_SUCCESS : fail(GC_ERR_RESOURCE_EXHAUSTED, "no thread to be had"));
}

GC_API DSStopAcquisition(void *stream, int32_t flags)
{
    (void)flags;
    struct device *d = lock(stream, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    camera_end(d);
    return unlock(d, GC_ERR_SUCCESS);
}

GC_API DSGetInfo(void *stream, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    struct device *d = lock(stream, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    switch (command) {
    case STREAM_INFO_ID:
        return unlock(d, give_text("Stream0", type, out, size));
    case STREAM_INFO_TLTYPE:
        return unlock(d, give_text(device_transport(d->module.device), type, out, size));
    case STREAM_INFO_NUM_DELIVERED:
        return unlock(d, give_number(TYPE_UINT64, d->delivered, type, out, size));
    case STREAM_INFO_NUM_UNDERRUN:
        return unlock(d, give_number(TYPE_UINT64, d->underruns, type, out, size));
    case STREAM_INFO_NUM_STARTED:
        return unlock(d, give_number(TYPE_UINT64, d->started, type, out, size));
    case STREAM_INFO_NUM_ANNOUNCED:
        return unlock(d, give_number(TYPE_SIZET, announced(d), type, out, size));
    case STREAM_INFO_NUM_QUEUED:
        return unlock(d, give_number(TYPE_SIZET, stream_buffers(d, BUFFER_INPUT), type, out, size));
    case STREAM_INFO_NUM_AWAIT_DELIVERY:
        return unlock(d, give_number(TYPE_SIZET, stream_buffers(d, BUFFER_OUTPUT), type, out, size));
    case STREAM_INFO_IS_GRABBING:
        return unlock(d, give_number(TYPE_BOOL8, d->grabbing, type, out, size));
    case STREAM_INFO_DEFINES_PAYLOADSIZE: /* as most GigE producers: PayloadSize is asked of the camera */
        return unlock(d, give_number(TYPE_BOOL8, 0, type, out, size));
    case STREAM_INFO_NUM_CHUNKS_MAX:
        return unlock(d, give_number(TYPE_SIZET, CHUNK_COUNT, type, out, size));
    case STREAM_INFO_BUF_ANNOUNCE_MIN:
    case STREAM_INFO_BUF_ALIGNMENT:
        return unlock(d, give_number(TYPE_SIZET, 1, type, out, size));
    default:
        return unlock(d, fail(GC_ERR_NOT_IMPLEMENTED, "no such stream information"));
    }
}

static GC_ERROR buffer_info(const struct buffer *b, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    const struct frame *f = &b->frame;
    switch (command) {
    case BUFFER_INFO_BASE:
        return give_number(TYPE_PTR, (uintptr_t)b->base, type, out, size);
    case BUFFER_INFO_USER_PTR:
        return give_number(TYPE_PTR, (uintptr_t)b->user, type, out, size);
    case BUFFER_INFO_SIZE:
        return give_number(TYPE_SIZET, b->size, type, out, size);
    case BUFFER_INFO_TIMESTAMP: /* in ticks of 8 ns, as GigE cameras count */
        return give_number(TYPE_UINT64, f->start_ns / 8, type, out, size);
    case BUFFER_INFO_TIMESTAMP_NS:
        return give_number(TYPE_UINT64, f->start_ns, type, out, size);
    case BUFFER_INFO_NEW_DATA:
        return give_number(TYPE_BOOL8, b->new_data, type, out, size);
    case BUFFER_INFO_IS_QUEUED:
        return give_number(TYPE_BOOL8, b->state != BUFFER_FREE && b->state != BUFFER_DELIVERED, type, out, size);
    case BUFFER_INFO_IS_ACQUIRING:
        return give_number(TYPE_BOOL8, b->state == BUFFER_FILLING, type, out, size);
    case BUFFER_INFO_IS_INCOMPLETE:
        return give_number(TYPE_BOOL8, f->incomplete, type, out, size);
    case BUFFER_INFO_TLTYPE:
        return give_text(device_transport(b->module.device), type, out, size);
    case BUFFER_INFO_SIZE_FILLED:
        return give_number(TYPE_SIZET, f->filled, type, out, size);
    case BUFFER_INFO_DATA_SIZE:
        return give_number(TYPE_SIZET, f->bytes, type, out, size);
    case BUFFER_INFO_WIDTH:
        return give_number(TYPE_SIZET, f->width, type, out, size);
    case BUFFER_INFO_HEIGHT:
    case BUFFER_INFO_DELIVERED_IMAGEHEIGHT:
        return give_number(TYPE_SIZET, f->height, type, out, size);
    case BUFFER_INFO_XPADDING:
        return give_number(TYPE_SIZET, f->padding, type, out, size);
    case BUFFER_INFO_XOFFSET:
    case BUFFER_INFO_YOFFSET:
    case BUFFER_INFO_YPADDING:
    case BUFFER_INFO_IMAGEOFFSET:
        return give_number(TYPE_SIZET, 0, type, out, size);
    case BUFFER_INFO_FRAMEID:
        return give_number(TYPE_UINT64, f->id, type, out, size);
    case BUFFER_INFO_IMAGEPRESENT:
        return give_number(TYPE_BOOL8, f->filled > 0, type, out, size);
    case BUFFER_INFO_PAYLOADTYPE:
        return give_number(TYPE_SIZET, f->payload_type, type, out, size);
    case BUFFER_INFO_PIXELFORMAT:
        return give_number(TYPE_UINT64, f->pixel_format, type, out, size);
    case BUFFER_INFO_PIXELFORMAT_NAMESPACE:
        return give_number(TYPE_UINT64, PIXELFORMAT_NAMESPACE_PFNC_32BIT, type, out, size);
    case BUFFER_INFO_PIXEL_ENDIANNESS:
        return give_number(TYPE_INT32, PIXELENDIANNESS_LITTLE, type, out, size);
    case BUFFER_INFO_DELIVERED_CHUNKPAYLOADSIZE: /* from the first byte: the image is a chunk in GigE Vision */
        return give_number(TYPE_SIZET, f->has_chunks ? f->filled : 0, type, out, size);
    case BUFFER_INFO_CONTAINS_CHUNKDATA:
        return give_number(TYPE_BOOL8, f->has_chunks, type, out, size);
    case BUFFER_INFO_DATA_LARGER_THAN_BUFFER:
        return give_number(TYPE_BOOL8, f->too_large, type, out, size);
    default:
        return fail(GC_ERR_NOT_IMPLEMENTED, "no such buffer information");
    }
}

GC_API DSGetBufferInfo(void *stream, void *handle, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    struct device *d = lock(stream, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    const struct module *buffer = module_of(handle, KIND_BUFFER);
    return unlock(d, buffer == NULL ? fail(GC_ERR_INVALID_HANDLE, "no such buffer is announced")
                                    : buffer_info((const struct buffer *)buffer, command, type, out, size));
}

GC_API DSGetBufferID(void *stream, uint32_t index, void **buffer)
{
    struct device *d = lock(stream, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    for (size_t i = 0; i < MAX_BUFFERS; i++) {
        if (d->buffers[i].module.open && index-- == 0) {
            *buffer = &d->buffers[i];
            return unlock(d, GC_ERR_SUCCESS);
        }
    }
    return unlock(d, fail(GC_ERR_INVALID_INDEX, "there are fewer buffers"));
}

/* Where the chunks lie, for consumers that do not know the transport's own layout. */
GC_API DSGetBufferChunkData(void *stream, void *handle, struct chunk_place *places, size_t *count)
{
    struct device *d = lock(stream, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    const struct buffer *buffer = (const struct buffer *)module_of(handle, KIND_BUFFER);
    if (buffer == NULL)
        return unlock(d, fail(GC_ERR_INVALID_HANDLE, "no such buffer is announced"));
    if (!buffer->frame.has_chunks)
        return unlock(d, fail(GC_ERR_NO_DATA, "the frame has no chunks"));
    if (places != NULL && *count < CHUNK_COUNT)
        return unlock(d, fail(GC_ERR_BUFFER_TOO_SMALL, "there are three chunks"));
    for (size_t i = 0; places != NULL && i < CHUNK_COUNT; i++)
        places[i] = (struct chunk_place){
            0x1001 + i, (ptrdiff_t)(buffer->frame.image_bytes + CHUNK_TAG_BYTES + CHUNK_BYTES * i), sizeof(uint64_t)};
    *count = CHUNK_COUNT;
    return unlock(d, GC_ERR_SUCCESS);
}

GC_API GCRegisterEvent(void *source, int32_t what, void **event)
{
    if (what != EVENT_NEW_BUFFER) /* any other error breaks harvesters when it opens a device */
        return fail(GC_ERR_NOT_IMPLEMENTED, "the only event is a new buffer");
    struct device *d = lock(source, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    if (d->event.open)
        return unlock(d, fail(GC_ERR_RESOURCE_IN_USE, "the event is registered"));
    d->event.open = true;
    *event = &d->event;
    return unlock(d, GC_ERR_SUCCESS);
}

GC_API GCUnregisterEvent(void *source, int32_t what)
{
    struct device *d = lock(source, KIND_STREAM);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_STREAM);
    if (what != EVENT_NEW_BUFFER || !d->event.open)
        return unlock(d, fail(GC_ERR_INVALID_PARAMETER, "the event is not registered"));
    d->event.open = false;
    pthread_cond_broadcast(&d->changed);
    return unlock(d, GC_ERR_SUCCESS);
}

GC_API EventGetInfo(void *event, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    struct device *d = lock(event, KIND_EVENT);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the event is not registered");
    switch (command) {
    case EVENT_EVENT_TYPE:
        return unlock(d, give_number(TYPE_INT32, EVENT_NEW_BUFFER, type, out, size));
    case EVENT_NUM_IN_QUEUE:
        return unlock(d, give_number(TYPE_SIZET, stream_buffers(d, BUFFER_OUTPUT), type, out, size));
    case EVENT_NUM_FIRED:
        return unlock(d, give_number(TYPE_UINT64, d->fired, type, out, size));
    case EVENT_SIZE_MAX:
    case EVENT_INFO_DATA_SIZE_MAX:
        return unlock(d, give_number(TYPE_SIZET, sizeof(struct new_buffer_event), type, out, size));
    default:
        return unlock(d, fail(GC_ERR_NOT_IMPLEMENTED, "no such event information"));
    }
}

GC_API EventGetData(void *event, void *out, size_t *size, uint64_t timeout_ms)
{
    const struct module *module = module_of(event, KIND_EVENT);
    if (module != NULL)
        control_hang(module->device, HANG_EVENT);
    struct device *d = lock(event, KIND_EVENT);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the event is not registered");
    /* A time-out of years would overflow: what is longer than a day waits a day, and again. */
    const uint64_t day_ms = 86400000, until_ns = monotonic_ns() + (timeout_ms < day_ms ? timeout_ms : day_ms) * 1000000u;
    struct buffer *buffer = oldest(d, BUFFER_OUTPUT);
    while (buffer == NULL && d->event.open && monotonic_ns() < until_ns) {
        wait_until(d, until_ns);
        buffer = oldest(d, BUFFER_OUTPUT);
    }
    if (!d->event.open)
        return unlock(d, fail(GC_ERR_ABORT, "the event was unregistered meanwhile"));
    if (buffer == NULL)
        return unlock(d, fail(GC_ERR_TIMEOUT, "no frame came"));
    const struct new_buffer_event data = {buffer, buffer->user};
    if (*size < sizeof data)
        return unlock(d, fail(GC_ERR_BUFFER_TOO_SMALL, "a new buffer's event has two pointers"));
    memcpy(out, &data, sizeof data);
    *size = sizeof data;
    move(d, buffer, BUFFER_DELIVERED);
    return unlock(d, GC_ERR_SUCCESS);
}

GC_API EventFlush(void *event)
{
    struct device *d = lock(event, KIND_EVENT);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the event is not registered");
    for (size_t i = 0; i < MAX_BUFFERS; i++)
        if (is_in(&d->buffers[i], BUFFER_OUTPUT))
            move(d, &d->buffers[i], BUFFER_FREE);
    return unlock(d, GC_ERR_SUCCESS);
}

GC_API EventKill(void *event)
{
    struct device *d = lock(event, KIND_EVENT);
    if (d == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the event is not registered");
    pthread_cond_broadcast(&d->changed);
    return unlock(d, GC_ERR_SUCCESS);
}
