/* The loops of pure.py, compiled. Each function does what the function of that name does there;
 * tests/loops compares the two. Where the input is not of the plain kind, a function returns None
 * or calls back, so that only Python code has the rules of what is rare.
 *
 * No function releases the GIL or keeps a reference to an argument. Functions that call back, or
 * release what was in a list, read lists by index with their current size, and own the items that
 * they use. The others borrow items: no caller passes a list that other code can change.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if PY_BIG_ENDIAN
#error "the byte order must be little-endian; pure.py is used instead"
#endif

/* -- XXH3 of up to 240 bytes, with 64 bits (0 bytes or more) and 128 bits (17 or more), after the
 *    specification of xxHash 0.8. Other input is hashed by the library. */

#define PRIME64_1 0x9E3779B185EBCA87ULL
#define PRIME64_2 0xC2B2AE3D27D4EB4FULL
#define PRIME64_3 0x165667B19E3779F9ULL
#define PRIME64_4 0x85EBCA77C2B2AE63ULL
#define SHORT_INPUT 240

static const uint8_t SECRET[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint32_t read32(const uint8_t *at) { uint32_t n; memcpy(&n, at, 4); return n; }
static inline uint64_t read64(const uint8_t *at) { uint64_t n; memcpy(&n, at, 8); return n; }
static inline uint64_t rotl(uint64_t n, int by) { return (n << by) | (n >> (64 - by)); }

static inline uint64_t fold(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t avalanche(uint64_t h) {
    h ^= h >> 37;
    h *= 0x165667919E3779F9ULL;
    return h ^ (h >> 32);
}

static inline uint64_t avalanche64(uint64_t h) {
    h ^= h >> 33;
    h *= PRIME64_2;
    h ^= h >> 29;
    h *= PRIME64_3;
    return h ^ (h >> 32);
}

static inline uint64_t mix16(const uint8_t *at, const uint8_t *secret, uint64_t seed) {
    return fold(read64(at) ^ (read64(secret) + seed), read64(at + 8) ^ (read64(secret + 8) - seed));
}

static uint64_t hash_short(const uint8_t *at, size_t size, uint64_t seed) {
    if (size > 128) {
        uint64_t sum = size * PRIME64_1;
        size_t rounds = size / 16;
        for (size_t i = 0; i < 8; i++)
            sum += mix16(at + 16 * i, SECRET + 16 * i, seed);
        sum = avalanche(sum);
        for (size_t i = 8; i < rounds; i++)
            sum += mix16(at + 16 * i, SECRET + 16 * (i - 8) + 3, seed);
        return avalanche(sum + mix16(at + size - 16, SECRET + 136 - 17, seed));
    }
    if (size > 16) {
        uint64_t sum = size * PRIME64_1;
        for (size_t i = (size - 1) / 32 + 1; i-- > 0;) {
            sum += mix16(at + 16 * i, SECRET + 32 * i, seed);
            sum += mix16(at + size - 16 * (i + 1), SECRET + 32 * i + 16, seed);
        }
        return avalanche(sum);
    }
    if (size > 8) {
        uint64_t low = read64(at) ^ ((read64(SECRET + 24) ^ read64(SECRET + 32)) + seed);
        uint64_t high = read64(at + size - 8) ^ ((read64(SECRET + 40) ^ read64(SECRET + 48)) - seed);
        return avalanche(size + __builtin_bswap64(low) + high + fold(low, high));
    }
    if (size >= 4) {
        seed ^= (uint64_t)__builtin_bswap32((uint32_t)seed) << 32;
        uint64_t h = read32(at + size - 4) + ((uint64_t)read32(at) << 32);
        h ^= (read64(SECRET + 8) ^ read64(SECRET + 16)) - seed;
        h ^= rotl(h, 49) ^ rotl(h, 24);
        h *= 0x9FB21C651E98DF25ULL;
        h ^= (h >> 35) + size;
        h *= 0x9FB21C651E98DF25ULL;
        return h ^ (h >> 28);
    }
    if (size > 0) {
        uint32_t h = ((uint32_t)at[0] << 16) | ((uint32_t)at[size >> 1] << 24) | at[size - 1];
        h |= (uint32_t)size << 8;
        return avalanche64((uint64_t)h ^ ((read32(SECRET) ^ read32(SECRET + 4)) + seed));
    }
    return avalanche64(seed ^ (read64(SECRET + 56) ^ read64(SECRET + 64)));
}

typedef unsigned __int128 uint128_t;

typedef struct {
    uint64_t low, high;
} Pair;

static inline Pair mix32(Pair sum, const uint8_t *first, const uint8_t *second, const uint8_t *secret) {
    sum.low += mix16(first, secret, 0);
    sum.low ^= read64(second) + read64(second + 8);
    sum.high += mix16(second, secret + 16, 0);
    sum.high ^= read64(first) + read64(first + 8);
    return sum;
}

static uint128_t hash128_short(const uint8_t *at, size_t size) {
    Pair sum = {size * PRIME64_1, 0};
    if (size > 128) {
        for (size_t i = 0; i < 4; i++)
            sum = mix32(sum, at + 32 * i, at + 32 * i + 16, SECRET + 32 * i);
        sum.low = avalanche(sum.low);
        sum.high = avalanche(sum.high);
        for (size_t i = 4; i < size / 32; i++)
            sum = mix32(sum, at + 32 * i, at + 32 * i + 16, SECRET + 3 + 32 * (i - 4));
        sum = mix32(sum, at + size - 16, at + size - 32, SECRET + 136 - 17 - 16);
    } else {
        for (size_t i = (size - 1) / 32 + 1; i-- > 0;)
            sum = mix32(sum, at + 16 * i, at + size - 16 * (i + 1), SECRET + 32 * i);
    }
    uint64_t high = sum.low * PRIME64_1 + sum.high * PRIME64_4 + size * PRIME64_2;
    return ((uint128_t)(0 - avalanche(high)) << 64) | avalanche(sum.low + sum.high);
}

/* -- layout of records, as in dstash/store/record.py */

enum {
    CHECKSUM_END = 8,
    VERSION_END = 28,
    HEAD_BYTES = 37,
    FLAG_TOMBSTONE = 1,
    FLAG_REGISTER = 4,
    MAX_KEY_BYTES = 400,
};

static const uint8_t PLAIN[HEAD_BYTES - VERSION_END] = {0};
static const uint8_t ABSENT_HEAD[HEAD_BYTES] = {[VERSION_END] = FLAG_TOMBSTONE};

/* xxhash.xxh3_64_intdigest and xxhash.xxh3_128_digest */
static PyObject *hash_of_library, *hash128_of_library;

/* Hash any number of bytes; return 0, or -1 with an exception. */
static int hash_bytes(const uint8_t *at, Py_ssize_t size, uint64_t seed, uint64_t *hash) {
    if (size <= SHORT_INPUT) {
        *hash = hash_short(at, (size_t)size, seed);
        return 0;
    }
    PyObject *view = PyMemoryView_FromMemory((char *)at, size, PyBUF_READ);
    PyObject *number = view == NULL ? NULL : PyObject_CallFunction(
        hash_of_library, "OK", view, (unsigned long long)seed);
    Py_XDECREF(view);
    if (number == NULL)
        return -1;
    *hash = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

/* Hash any number of bytes with 128 bits; return 0, or -1 with an exception. */
static int hash128_bytes(const uint8_t *at, Py_ssize_t size, uint128_t *hash) {
    if (size > 16 && size <= SHORT_INPUT) {
        *hash = hash128_short(at, (size_t)size);
        return 0;
    }
    PyObject *digest = PyObject_CallFunction(hash128_of_library, "y#", at, size);
    int is_good = digest != NULL && PyBytes_CheckExact(digest) && PyBytes_GET_SIZE(digest) == 16;
    if (is_good) {
        const uint8_t *bytes = (uint8_t *)PyBytes_AS_STRING(digest);
        *hash = ((uint128_t)__builtin_bswap64(read64(bytes)) << 64) |
                __builtin_bswap64(read64(bytes + 8));
    } else if (digest != NULL) {
        PyErr_SetString(PyExc_TypeError, "a digest of xxhash has not 16 bytes");
    }
    Py_XDECREF(digest);
    return is_good ? 0 : -1;
}

/* Return a list or tuple with the items of a sequence of bytes; NULL with an exception. */
static PyObject *sequence(PyObject *given) {
    return PySequence_Fast(given, "a sequence is required");
}

/* Objects of a batch are spread over memory, so those that are needed soon are fetched early. */
enum { AHEAD = 12 };

static inline void fetch_early(PyObject *items, Py_ssize_t place) {
    if (place < PySequence_Fast_GET_SIZE(items)) {
        const char *item = (const char *)PySequence_Fast_GET_ITEM(items, place);
        __builtin_prefetch(item, 1);
        __builtin_prefetch(item + 63, 0);
    }
}

static PyObject *not_bytes(PyObject *item) {
    PyErr_Format(PyExc_TypeError, "bytes are required, not %.100s", Py_TYPE(item)->tp_name);
    return NULL;
}

/* -- keys */

/* Find the bytes of a key that is ASCII text or encoded already; return whether it is one. */
static inline int key_bytes(PyObject *key, const uint8_t **at, Py_ssize_t *size) {
    if (PyBytes_CheckExact(key)) {
        *at = (const uint8_t *)PyBytes_AS_STRING(key);
        *size = PyBytes_GET_SIZE(key);
    } else if (PyUnicode_CheckExact(key) && PyUnicode_IS_COMPACT_ASCII(key)) {
        *at = (const uint8_t *)PyUnicode_DATA(key);
        *size = PyUnicode_GET_LENGTH(key);
    } else {
        return 0;
    }
    return *size > 0 && *size <= MAX_KEY_BYTES;
}

/* Find the mask that gives a partition of a hash, by the number of partitions. */
static int mask_of(Py_ssize_t partitions, uint64_t *mask) {
    if (partitions < 1 || (partitions & (partitions - 1)) != 0) {
        PyErr_SetString(PyExc_ValueError, "the number of partitions is no power of two");
        return 0;
    }
    *mask = (uint64_t)partitions - 1;
    return 1;
}

static PyObject *are_plain(PyObject *module, PyObject *args) {
    PyObject *given;
    if (!PyArg_ParseTuple(args, "O", &given))
        return NULL;
    PyObject *keys = sequence(given);
    if (keys == NULL)
        return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(keys), place = 0;
    for (; place < count; place++) {
        PyObject *key = PySequence_Fast_GET_ITEM(keys, place);
        const uint8_t *at;
        Py_ssize_t size;
        fetch_early(keys, place + AHEAD);
        if (!PyUnicode_CheckExact(key) || !key_bytes(key, &at, &size))
            break;
    }
    Py_DECREF(keys);
    return PyBool_FromLong(place == count);
}

static PyObject *sort_places(PyObject *module, PyObject *args) {
    PyObject *given, *keys = NULL, *places = NULL, *ends = NULL;
    Py_buffer lanes;
    Py_ssize_t count;
    uint16_t *lane_of_key = NULL;
    uint32_t *next = NULL;
    if (!PyArg_ParseTuple(args, "Oy*n", &given, &lanes, &count))
        return NULL;
    uint64_t mask;
    if (!mask_of(lanes.len / (Py_ssize_t)sizeof(uint16_t), &mask))
        goto failed;
    if (count < 1 || count > UINT16_MAX + 1) {
        PyErr_SetString(PyExc_ValueError, "the number of lanes is out of range");
        goto failed;
    }
    keys = sequence(given);
    if (keys == NULL)
        goto failed;
    Py_ssize_t size = PySequence_Fast_GET_SIZE(keys);
    lane_of_key = PyMem_Malloc((size_t)size * sizeof(uint16_t) + 1);
    next = PyMem_Calloc((size_t)count + 1, sizeof(uint32_t));
    if (lane_of_key == NULL || next == NULL || size > UINT32_MAX) {
        PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t place = 0; place < size; place++) {
        const uint8_t *at;
        Py_ssize_t length;
        PyObject *key = PySequence_Fast_GET_ITEM(keys, place);
        fetch_early(keys, place + AHEAD);
        if (!key_bytes(key, &at, &length)) {
            not_bytes(key);
            goto failed;
        }
        uint64_t hash;
        if (hash_bytes(at, length, 0, &hash) < 0)
            goto failed;
        uint16_t lane = ((const uint16_t *)lanes.buf)[hash & mask];
        if (lane >= count) {
            PyErr_SetString(PyExc_ValueError, "a lane is out of range");
            goto failed;
        }
        lane_of_key[place] = lane;
        next[lane + 1]++;
    }
    /* A counting sort: next[lane] is where the next key of that lane goes. */
    for (Py_ssize_t lane = 0; lane < count; lane++)
        next[lane + 1] += next[lane];
    places = PyBytes_FromStringAndSize(NULL, size * (Py_ssize_t)sizeof(uint32_t));
    ends = PyList_New(count);
    if (places == NULL || ends == NULL)
        goto failed;
    char *sorted = PyBytes_AS_STRING(places);
    for (Py_ssize_t lane = 0; lane < count; lane++) {
        PyObject *end = PyLong_FromUnsignedLong(next[lane + 1]);
        if (end == NULL)
            goto failed;
        PyList_SET_ITEM(ends, lane, end);
    }
    for (uint32_t place = 0; place < (uint32_t)size; place++)
        memcpy(sorted + sizeof place * next[lane_of_key[place]]++, &place, sizeof place);
    PyMem_Free(lane_of_key);
    PyMem_Free(next);
    Py_DECREF(keys);
    PyBuffer_Release(&lanes);
    return Py_BuildValue("NN", places, ends);

failed:
    PyMem_Free(lane_of_key);
    PyMem_Free(next);
    Py_XDECREF(places);
    Py_XDECREF(ends);
    Py_XDECREF(keys);
    PyBuffer_Release(&lanes);
    return NULL;
}

/* Take the arguments (sequence, places) of a function; the places are 32-bit numbers. */
static PyObject *with_places(PyObject *args, Py_buffer *places, Py_ssize_t *count) {
    PyObject *given;
    if (!PyArg_ParseTuple(args, "Oy*", &given, places))
        return NULL;
    PyObject *items = sequence(given);
    *count = places->len / (Py_ssize_t)sizeof(uint32_t);
    if (items == NULL) {
        PyBuffer_Release(places);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < *count; i++) {
        if (((const uint32_t *)places->buf)[i] >= (size_t)PySequence_Fast_GET_SIZE(items)) {
            PyErr_SetString(PyExc_IndexError, "a place is out of range");
            PyBuffer_Release(places);
            Py_DECREF(items);
            return NULL;
        }
    }
    return items;
}

static PyObject *pick(PyObject *module, PyObject *args) {
    Py_buffer places;
    Py_ssize_t count;
    PyObject *items = with_places(args, &places, &count);
    if (items == NULL)
        return NULL;
    PyObject *picked = PyList_New(count);
    for (Py_ssize_t i = 0; picked != NULL && i < count; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(items, ((const uint32_t *)places.buf)[i]);
        PyList_SET_ITEM(picked, i, Py_NewRef(item));
    }
    PyBuffer_Release(&places);
    Py_DECREF(items);
    return picked;
}

/* Write the head of a msgpack array or byte string; return the position after it. */
static uint8_t *array_head(uint8_t *at, size_t count) {
    if (count < 16) {
        *at++ = (uint8_t)(0x90 | count);
    } else if (count < 1 << 16) {
        *at++ = 0xdc;
        *at++ = (uint8_t)(count >> 8);
        *at++ = (uint8_t)count;
    } else {
        *at++ = 0xdd;
        for (int shift = 24; shift >= 0; shift -= 8)
            *at++ = (uint8_t)(count >> shift);
    }
    return at;
}

static PyObject *pack_keys(PyObject *module, PyObject *args) {
    Py_buffer places;
    Py_ssize_t count, total = 5;
    PyObject *keys = with_places(args, &places, &count), *frame = NULL;
    if (keys == NULL)
        return NULL;
    const uint32_t *place = places.buf;
    for (Py_ssize_t i = 0; i < count; i++) {
        const uint8_t *at;
        Py_ssize_t size;
        PyObject *key = PySequence_Fast_GET_ITEM(keys, place[i]);
        if (i + AHEAD < count)
            fetch_early(keys, place[i + AHEAD]);
        if (!key_bytes(key, &at, &size)) {
            not_bytes(key);
            goto done;
        }
        total += size + (size < 256 ? 2 : 3);
    }
    frame = PyBytes_FromStringAndSize(NULL, total);
    if (frame == NULL)
        goto done;
    uint8_t *begin = (uint8_t *)PyBytes_AS_STRING(frame), *to = array_head(begin, (size_t)count);
    for (Py_ssize_t i = 0; i < count; i++) {
        const uint8_t *at;
        Py_ssize_t size;
        key_bytes(PySequence_Fast_GET_ITEM(keys, place[i]), &at, &size);
        if (size < 256) {
            *to++ = 0xc4;
        } else {
            *to++ = 0xc5;
            *to++ = (uint8_t)(size >> 8);
        }
        *to++ = (uint8_t)size;
        memcpy(to, at, (size_t)size);
        to += size;
    }
    _PyBytes_Resize(&frame, to - begin);
done:
    PyBuffer_Release(&places);
    Py_DECREF(keys);
    return frame;
}

static PyObject *put_at(PyObject *module, PyObject *args) {
    PyObject *values, *given;
    Py_buffer places;
    if (!PyArg_ParseTuple(args, "O!y*O", &PyList_Type, &values, &places, &given))
        return NULL;
    const uint32_t *place = places.buf;
    Py_ssize_t count = places.len / (Py_ssize_t)sizeof(uint32_t);
    PyObject *items = sequence(given);
    int is_good = items != NULL;
    if (is_good && PySequence_Fast_GET_SIZE(items) != count) {
        PyErr_SetString(PyExc_ValueError, "there must be as many values as places");
        is_good = 0;
    }
    /* What was there is released, which may run code that changes the lists. */
    for (Py_ssize_t i = 0; is_good && i < count && i < PySequence_Fast_GET_SIZE(items); i++) {
        PyObject *item = Py_NewRef(PySequence_Fast_GET_ITEM(items, i));
        is_good = PyList_SetItem(values, place[i], item) == 0;
    }
    PyBuffer_Release(&places);
    Py_XDECREF(items);
    if (!is_good)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *add_pairs(PyObject *module, PyObject *args) {
    PyObject *found, *given_keys, *given_values;
    if (!PyArg_ParseTuple(args, "O!OO", &PyDict_Type, &found, &given_keys, &given_values))
        return NULL;
    PyObject *keys = sequence(given_keys);
    PyObject *values = keys == NULL ? NULL : sequence(given_values);
    int is_good = keys != NULL && values != NULL;
    if (is_good && PySequence_Fast_GET_SIZE(keys) != PySequence_Fast_GET_SIZE(values)) {
        PyErr_SetString(PyExc_ValueError, "there must be as many values as keys");
        is_good = 0;
    }
    /* A key may be of a class whose hash or comparison runs code that changes the lists. */
    for (Py_ssize_t i = 0; is_good && i < PySequence_Fast_GET_SIZE(keys) &&
                           i < PySequence_Fast_GET_SIZE(values); i++) {
        PyObject *key = Py_NewRef(PySequence_Fast_GET_ITEM(keys, i));
        PyObject *value = Py_NewRef(PySequence_Fast_GET_ITEM(values, i));
        fetch_early(keys, i + AHEAD);
        fetch_early(values, i + AHEAD);
        is_good = PyDict_SetItem(found, key, value) == 0;
        Py_DECREF(key);
        Py_DECREF(value);
    }
    Py_XDECREF(keys);
    Py_XDECREF(values);
    if (!is_good)
        return NULL;
    Py_RETURN_NONE;
}

/* -- records */

static PyObject *not_held(void) {
    PyErr_SetString(PyExc_TypeError, "a partition is not held here");
    return NULL;
}

/* Return the prefix of a key's storage key (borrowed), and the key's hash. */
static PyObject *prefix_of(PyObject *prefixes, PyObject *key, uint64_t *hash) {
    if (!PyBytes_CheckExact(key))
        return not_bytes(key);
    if (hash_bytes((uint8_t *)PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), 0, hash) < 0)
        return NULL;
    uint64_t mask;
    if (!mask_of(PyList_GET_SIZE(prefixes), &mask))
        return NULL;
    PyObject *prefix = PyList_GET_ITEM(prefixes, *hash & mask);
    return PyBytes_CheckExact(prefix) ? prefix : not_held();
}

static PyObject *joined(PyObject *first, PyObject *second) {
    Py_ssize_t size = PyBytes_GET_SIZE(first);
    PyObject *both = PyBytes_FromStringAndSize(NULL, size + PyBytes_GET_SIZE(second));
    if (both != NULL) {
        memcpy(PyBytes_AS_STRING(both), PyBytes_AS_STRING(first), (size_t)size);
        memcpy(PyBytes_AS_STRING(both) + size, PyBytes_AS_STRING(second),
               (size_t)PyBytes_GET_SIZE(second));
    }
    return both;
}

static PyObject *locate(PyObject *module, PyObject *args) {
    PyObject *prefixes, *given;
    if (!PyArg_ParseTuple(args, "O!O", &PyList_Type, &prefixes, &given))
        return NULL;
    PyObject *keys = sequence(given);
    if (keys == NULL)
        return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(keys);
    PyObject *located = PyList_New(count);
    for (Py_ssize_t i = 0; located != NULL && i < count; i++) {
        uint64_t hash;
        PyObject *key = PySequence_Fast_GET_ITEM(keys, i);
        PyObject *prefix = prefix_of(prefixes, key, &hash);
        PyObject *storage_key = prefix == NULL ? NULL : joined(prefix, key);
        if (storage_key == NULL)
            Py_CLEAR(located);
        else
            PyList_SET_ITEM(located, i, storage_key);
    }
    Py_DECREF(keys);
    return located;
}

static PyObject *seal(PyObject *module, PyObject *args) {
    PyObject *prefixes, *given_keys, *head, *given_payloads, *sealed = NULL;
    unsigned long long salt;
    if (!PyArg_ParseTuple(args, "O!KOSO", &PyList_Type, &prefixes, &salt, &given_keys, &head,
                          &given_payloads))
        return NULL;
    PyObject *keys = sequence(given_keys);
    PyObject *payloads = keys == NULL ? NULL : sequence(given_payloads);
    if (keys == NULL || payloads == NULL)
        goto done;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(keys), head_size = PyBytes_GET_SIZE(head);
    if (PySequence_Fast_GET_SIZE(payloads) != count) {
        PyErr_SetString(PyExc_ValueError, "there must be as many payloads as keys");
        goto done;
    }
    sealed = PyList_New(count);
    for (Py_ssize_t i = 0; sealed != NULL && i < count; i++) {
        uint64_t hash;
        PyObject *key = PySequence_Fast_GET_ITEM(keys, i), *entry = NULL;
        PyObject *payload = PySequence_Fast_GET_ITEM(payloads, i);
        PyObject *prefix = prefix_of(prefixes, key, &hash);
        if (prefix != NULL && !PyBytes_CheckExact(payload))
            prefix = not_bytes(payload);
        PyObject *storage_key = prefix == NULL ? NULL : joined(prefix, key);
        if (storage_key != NULL) {
            Py_ssize_t body = head_size + PyBytes_GET_SIZE(payload);
            PyObject *record = PyBytes_FromStringAndSize(NULL, CHECKSUM_END + body);
            if (record != NULL) {
                uint8_t *at = (uint8_t *)PyBytes_AS_STRING(record);
                uint64_t checksum;
                memcpy(at + CHECKSUM_END, PyBytes_AS_STRING(head), (size_t)head_size);
                memcpy(at + CHECKSUM_END + head_size, PyBytes_AS_STRING(payload),
                       (size_t)PyBytes_GET_SIZE(payload));
                if (hash_bytes(at + CHECKSUM_END, body, hash ^ salt, &checksum) == 0) {
                    checksum = __builtin_bswap64(checksum);
                    memcpy(at, &checksum, CHECKSUM_END);
                    entry = PyTuple_Pack(2, storage_key, record);
                }
                Py_DECREF(record);
            }
            Py_DECREF(storage_key);
        }
        if (entry == NULL)
            Py_CLEAR(sealed);
        else
            PyList_SET_ITEM(sealed, i, entry);
    }
done:
    Py_XDECREF(keys);
    Py_XDECREF(payloads);
    return sealed;
}

/* Return 1 if a record has its checksum, 0 if not, -1 with an exception. */
static int is_intact(PyObject *record, uint64_t seed) {
    const uint8_t *at = (const uint8_t *)PyBytes_AS_STRING(record);
    Py_ssize_t size = PyBytes_GET_SIZE(record);
    uint64_t checksum;
    if (size < HEAD_BYTES)
        return 0;
    if (hash_bytes(at + CHECKSUM_END, size - CHECKSUM_END, seed, &checksum) < 0)
        return -1;
    return checksum == __builtin_bswap64(read64(at));
}

/* Return 1 if a record under a storage key has its checksum, 0 if not, -1 with an exception. */
static int is_sound(PyObject *storage_key, PyObject *record) {
    const uint8_t *at = (const uint8_t *)PyBytes_AS_STRING(storage_key);
    Py_ssize_t size = PyBytes_GET_SIZE(storage_key);
    Py_ssize_t end = size < 3 ? size : 3 + at[2];
    uint64_t key_hash, index_hash;
    if (size < 3 || end > size)
        return 0;
    if (hash_bytes(at + end, size - end, 0, &key_hash) < 0 ||
        hash_bytes(at + 3, end - 3, 0, &index_hash) < 0)
        return -1;
    return is_intact(record, key_hash ^ index_hash);
}

/* Find storage key and record of an entry (borrowed); return 0, or -1 with an exception. */
static int entry_of(PyObject *entries, Py_ssize_t place, PyObject **storage_key, PyObject **record) {
    PyObject *entry = PySequence_Fast_GET_ITEM(entries, place);
    if (!PyTuple_Check(entry)) {
        PyErr_SetString(PyExc_TypeError, "an entry is a tuple");
        return -1;
    }
    return PyArg_ParseTuple(entry, "SS", storage_key, record) ? 0 : -1;
}

static PyObject *are_sound(PyObject *module, PyObject *args) {
    PyObject *given;
    if (!PyArg_ParseTuple(args, "O", &given))
        return NULL;
    PyObject *entries = sequence(given);
    if (entries == NULL)
        return NULL;
    int sound = 1;
    for (Py_ssize_t i = 0; sound == 1 && i < PySequence_Fast_GET_SIZE(entries); i++) {
        PyObject *storage_key, *record;
        sound = entry_of(entries, i, &storage_key, &record) < 0 ? -1 : is_sound(storage_key, record);
    }
    Py_DECREF(entries);
    return sound < 0 ? NULL : PyBool_FromLong(sound);
}

static PyObject *total_size(PyObject *module, PyObject *args) {
    PyObject *given;
    if (!PyArg_ParseTuple(args, "O", &given))
        return NULL;
    PyObject *records = sequence(given);
    if (records == NULL)
        return NULL;
    Py_ssize_t total = 0;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(records); i++) {
        PyObject *record = PySequence_Fast_GET_ITEM(records, i);
        if (PyBytes_CheckExact(record))
            total += PyBytes_GET_SIZE(record);
    }
    Py_DECREF(records);
    return PyLong_FromSsize_t(total);
}

/* Whether flags and expiry of a record are those of a live one at a time. */
static inline int is_live(const uint8_t *record, uint64_t now) {
    uint64_t expiry;
    memcpy(&expiry, record + VERSION_END + 1, sizeof expiry);
    return !(record[VERSION_END] & FLAG_TOMBSTONE) &&
           (expiry == 0 || __builtin_bswap64(expiry) > now);
}

static int append_number(PyObject *list, Py_ssize_t number) {
    PyObject *item = PyLong_FromSsize_t(number);
    int result = item == NULL ? -1 : PyList_Append(list, item);
    Py_XDECREF(item);
    return result;
}

/* A growing frame. */
typedef struct {
    uint8_t *begin;
    size_t size, room;
} Frame;

static int append(Frame *frame, const void *bytes, size_t size) {
    if (frame->room - frame->size < size) {
        size_t room = 2 * frame->room + size;
        uint8_t *begin = PyMem_Realloc(frame->begin, room);
        if (begin == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        frame->begin = begin;
        frame->room = room;
    }
    memcpy(frame->begin + frame->size, bytes, size);
    frame->size += size;
    return 0;
}

/* Append what a look-up answers for a record: its payload, or nil. */
static int append_payload(Frame *frame, PyObject *record, uint64_t seed, uint64_t now,
                          PyObject *value_of, PyObject *missing, PyObject *corrupt,
                          Py_ssize_t place) {
    int intact = record == Py_None ? 1 : is_intact(record, seed);
    if (intact < 0)
        return -1;
    const uint8_t *at = record == Py_None ? ABSENT_HEAD : (uint8_t *)PyBytes_AS_STRING(record);
    if (!intact || !is_live(at, now)) {
        if (append_number(intact ? missing : corrupt, place) < 0)
            return -1;
        return append(frame, "\xc0", 1);
    }
    size_t size = (size_t)(PyBytes_GET_SIZE(record) - HEAD_BYTES);
    if (!(at[VERSION_END] & FLAG_REGISTER))
        return append(frame, at + HEAD_BYTES, size);
    PyObject *value = PyObject_CallFunction(value_of, "y#", at + HEAD_BYTES, (Py_ssize_t)size);
    int result = -1;
    if (value != NULL && PyBytes_CheckExact(value))
        result = append(frame, PyBytes_AS_STRING(value), (size_t)PyBytes_GET_SIZE(value));
    else if (value != NULL)
        not_bytes(value);
    Py_XDECREF(value);
    return result;
}

static PyObject *join_live(PyObject *module, PyObject *args) {
    PyObject *given_keys, *given_records, *value_of;
    unsigned long long salt, now;
    if (!PyArg_ParseTuple(args, "KOOKO", &salt, &given_keys, &given_records, &now, &value_of))
        return NULL;
    PyObject *keys = sequence(given_keys), *result = NULL;
    PyObject *records = keys == NULL ? NULL : sequence(given_records);
    PyObject *missing = records == NULL ? NULL : PyList_New(0);
    PyObject *corrupt = missing == NULL ? NULL : PyList_New(0);
    Frame frame = {0};
    if (keys == NULL || records == NULL || missing == NULL || corrupt == NULL)
        goto done;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(records);
    uint8_t head[5];
    if (append(&frame, head, (size_t)(array_head(head, (size_t)count) - head)) < 0)
        goto done;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (i >= PySequence_Fast_GET_SIZE(keys) || i >= PySequence_Fast_GET_SIZE(records)) {
            PyErr_SetString(PyExc_ValueError, "there must be a key for each record");
            goto done;
        }
        uint64_t hash = 0;
        PyObject *key = PySequence_Fast_GET_ITEM(keys, i);
        PyObject *record = PySequence_Fast_GET_ITEM(records, i);
        if (!PyBytes_CheckExact(key) || (record != Py_None && !PyBytes_CheckExact(record))) {
            not_bytes(PyBytes_CheckExact(key) ? record : key);
            goto done;
        }
        if (hash_bytes((uint8_t *)PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), 0, &hash) < 0)
            goto done;
        Py_INCREF(record);
        int failed = append_payload(&frame, record, hash ^ salt, now, value_of, missing, corrupt, i);
        Py_DECREF(record);
        if (failed)
            goto done;
    }
    result = Py_BuildValue("y#OO", frame.begin, (Py_ssize_t)frame.size, missing, corrupt);
done:
    PyMem_Free(frame.begin);
    Py_XDECREF(keys);
    Py_XDECREF(records);
    Py_XDECREF(missing);
    Py_XDECREF(corrupt);
    return result;
}

static int is_before_version_end(Py_ssize_t begin) {
    if (begin >= 0 && begin < VERSION_END)
        return 1;
    PyErr_SetString(PyExc_ValueError, "the version of a record ends before that");
    return 0;
}

/* Append what digests cover of a record or head. */
static int append_head(Frame *frame, PyObject *record, Py_ssize_t begin) {
    if (!PyBytes_CheckExact(record)) {
        not_bytes(record);
        return -1;
    }
    Py_ssize_t end = Py_MIN(VERSION_END, PyBytes_GET_SIZE(record));
    const char *at = PyBytes_AS_STRING(record);
    return end <= begin ? 0 : append(frame, at + begin, (size_t)(end - begin));
}

/* Whether a record looks like a live value without expiry. */
static int is_plain_value(PyObject *record) {
    const char *at = PyBytes_AS_STRING(record);
    return PyBytes_GET_SIZE(record) > HEAD_BYTES &&
           memcmp(at + VERSION_END, PLAIN, sizeof PLAIN) == 0;
}

static PyObject *join_heads(PyObject *module, PyObject *args) {
    PyObject *given;
    Py_ssize_t begin;
    if (!PyArg_ParseTuple(args, "On", &given, &begin) || !is_before_version_end(begin))
        return NULL;
    PyObject *records = sequence(given), *result = NULL;
    Frame frame = {0};
    if (records == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(records); i++) {
        PyObject *record = PySequence_Fast_GET_ITEM(records, i);
        int failed = record == Py_None
            ? append(&frame, ABSENT_HEAD + begin, (size_t)(VERSION_END - begin))
            : append_head(&frame, record, begin);
        if (failed)
            goto done;
    }
    result = PyBytes_FromStringAndSize((char *)frame.begin, (Py_ssize_t)frame.size);
done:
    PyMem_Free(frame.begin);
    Py_DECREF(records);
    return result;
}

static PyObject *read_heads(PyObject *module, PyObject *args) {
    PyObject *get, *given, *judge, *missing, *result = NULL;
    Py_ssize_t most_bytes, begin, weight = 0;
    if (!PyArg_ParseTuple(args, "OOnnOO!", &get, &given, &most_bytes, &begin, &judge, &PyList_Type,
                          &missing))
        return NULL;
    if (!is_before_version_end(begin))
        return NULL;
    PyObject *keys = sequence(given);
    Frame frame = {0};
    if (keys == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(keys) && weight <= most_bytes; i++) {
        PyObject *head = NULL, *key = Py_NewRef(PySequence_Fast_GET_ITEM(keys, i));
        PyObject *record = PyObject_CallOneArg(get, key);
        Py_DECREF(key);
        int failed = record == NULL;
        if (record == Py_None) {
            failed = append_number(missing, i) < 0 ||
                     append(&frame, ABSENT_HEAD + begin, (size_t)(VERSION_END - begin)) < 0;
        } else if (!failed && !PyBytes_CheckExact(record)) {
            failed = 1;
            not_bytes(record);
        } else if (!failed) {
            weight += PyBytes_GET_SIZE(record);
            head = is_plain_value(record) ? Py_NewRef(record)
                                          : PyObject_CallFunction(judge, "nO", i, record);
            failed = head == NULL || append_head(&frame, head, begin) < 0;
        }
        Py_XDECREF(head);
        Py_XDECREF(record);
        if (failed)
            goto done;
    }
    result = PyBytes_FromStringAndSize((char *)frame.begin, (Py_ssize_t)frame.size);
done:
    PyMem_Free(frame.begin);
    Py_DECREF(keys);
    return result;
}

static PyObject *sum_hashes(PyObject *module, PyObject *args) {
    PyObject *given, *result = NULL;
    Py_ssize_t begin, end;
    if (!PyArg_ParseTuple(args, "Onn", &given, &begin, &end))
        return NULL;
    if (begin < 0 || end > HEAD_BYTES || begin > end) {
        PyErr_SetString(PyExc_ValueError, "the head of a record has no such part");
        return NULL;
    }
    PyObject *entries = sequence(given);
    PyObject *others = entries == NULL ? NULL : PyList_New(0);
    uint128_t sum = 0;
    if (entries == NULL || others == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(entries); i++) {
        PyObject *storage_key, *record;
        if (entry_of(entries, i, &storage_key, &record) < 0)
            goto done;
        int sound = is_plain_value(record) ? is_sound(storage_key, record) : 0;
        if (sound == 0)
            sound = PyList_Append(others, PySequence_Fast_GET_ITEM(entries, i));
        else if (sound > 0) {
            uint8_t hashed[3 + 255 + MAX_KEY_BYTES + HEAD_BYTES];
            Py_ssize_t size = PyBytes_GET_SIZE(storage_key);
            uint128_t hash;
            if (size > (Py_ssize_t)sizeof hashed - HEAD_BYTES) {
                PyErr_SetString(PyExc_ValueError, "a storage key is too long");
                goto done;
            }
            memcpy(hashed, PyBytes_AS_STRING(storage_key), (size_t)size);
            memcpy(hashed + size, PyBytes_AS_STRING(record) + begin, (size_t)(end - begin));
            sound = hash128_bytes(hashed, size + end - begin, &hash);
            sum += hash;
        }
        if (sound < 0)
            goto done;
    }
    uint64_t digest[2] = {__builtin_bswap64((uint64_t)(sum >> 64)), __builtin_bswap64((uint64_t)sum)};
    result = Py_BuildValue("y#O", digest, (Py_ssize_t)sizeof digest, others);
done:
    Py_XDECREF(entries);
    Py_XDECREF(others);
    return result;
}

/* -- msgpack */

/* Return the bytes of an object with that first byte; 0 if its length varies. */
static size_t length_of(uint8_t kind) {
    static const uint8_t numbers[] = {5, 9, 2, 3, 5, 9, 2, 3, 5, 9}; /* 0xca to 0xd3 */
    if (kind < 0x80 || kind >= 0xe0 || kind == 0xc0 || kind == 0xc2 || kind == 0xc3)
        return 1;
    if (kind >= 0xa0 && kind < 0xc0)
        return 1 + (kind & 0x1f);
    return kind >= 0xca && kind <= 0xd3 ? numbers[kind - 0xca] : 0;
}

static PyObject *unchecked(PyObject *module, PyObject *args) {
    PyObject *given;
    if (!PyArg_ParseTuple(args, "O", &given))
        return NULL;
    PyObject *payloads = sequence(given);
    PyObject *places = payloads == NULL ? NULL : PyList_New(0);
    for (Py_ssize_t i = 0; places != NULL && i < PySequence_Fast_GET_SIZE(payloads); i++) {
        PyObject *payload = PySequence_Fast_GET_ITEM(payloads, i);
        if (!PyBytes_CheckExact(payload)) {
            not_bytes(payload);
            Py_CLEAR(places);
            break;
        }
        const uint8_t *at = (uint8_t *)PyBytes_AS_STRING(payload);
        size_t size = (size_t)PyBytes_GET_SIZE(payload);
        int is_scalar = size > 0 && length_of(at[0]) == size;
        int is_short = size > 1 && (at[0] == 0xc4 || at[0] == 0xd9) && size == (size_t)at[1] + 2;
        if (!is_scalar && !is_short && append_number(places, i) < 0)
            Py_CLEAR(places);
    }
    Py_XDECREF(payloads);
    return places;
}

static PyMethodDef functions[] = {
    {"add_pairs", add_pairs, METH_VARARGS, NULL},
    {"are_plain", are_plain, METH_VARARGS, NULL},
    {"are_sound", are_sound, METH_VARARGS, NULL},
    {"join_heads", join_heads, METH_VARARGS, NULL},
    {"join_live", join_live, METH_VARARGS, NULL},
    {"locate", locate, METH_VARARGS, NULL},
    {"pack_keys", pack_keys, METH_VARARGS, NULL},
    {"pick", pick, METH_VARARGS, NULL},
    {"put_at", put_at, METH_VARARGS, NULL},
    {"read_heads", read_heads, METH_VARARGS, NULL},
    {"seal", seal, METH_VARARGS, NULL},
    {"sort_places", sort_places, METH_VARARGS, NULL},
    {"sum_hashes", sum_hashes, METH_VARARGS, NULL},
    {"total_size", total_size, METH_VARARGS, NULL},
    {"unchecked", unchecked, METH_VARARGS, NULL},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "dstash.loops._compiled",
    .m_doc = "The functions of pure.py, compiled.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__compiled(void) {
    PyObject *library = PyImport_ImportModule("xxhash");
    if (library == NULL)
        return NULL;
    hash_of_library = PyObject_GetAttrString(library, "xxh3_64_intdigest");
    hash128_of_library = PyObject_GetAttrString(library, "xxh3_128_digest");
    Py_DECREF(library);
    if (hash_of_library == NULL || hash128_of_library == NULL)
        return NULL;
    return PyModule_Create(&definition);
}
