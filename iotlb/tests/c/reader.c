/*
 * A device process written from docs/iotlb-abi.md and the VT-d specification alone: if it works, the page
 * says enough. It translates untagged reads through a second level.
 *
 * usage: reader SOCKET IOVA...   prints, for each, the address that it leads to, or "fault" and tells the daemon.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef _Atomic uint64_t word;

struct welcome {
    uint32_t kind, version, endpoint, pasid_bits;
    uint64_t root, region_bytes, slot_bytes;
    uint32_t root_config, reserved;
};

static struct welcome welcome;
static int doorbell;
static word *region, *slot;
static uint64_t table_base;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *map(int fd, uint64_t bytes, int prot)
{
    void *at = mmap(NULL, bytes, prot, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        die("mmap");
    return at;
}

/* The socket: HELLO, then WELCOME with three descriptors. */
static void join(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int socket_fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (socket_fd < 0 || connect(socket_fd, (struct sockaddr *)&address, sizeof address) < 0)
        die(path);
    const char hello[16] = { 1, 0, 0, 0, 2, 0, 0, 0, 'v', 'i', 'o', 't', 'l', 'b', 0, 1 };
    if (send(socket_fd, hello, sizeof hello, 0) != sizeof hello)
        die("HELLO");
    char control[CMSG_SPACE(3 * sizeof(int))];
    struct iovec bytes = { &welcome, sizeof welcome };
    struct msghdr message = { .msg_iov = &bytes, .msg_iovlen = 1,
                              .msg_control = control, .msg_controllen = sizeof control };
    if (recvmsg(socket_fd, &message, 0) != sizeof welcome || welcome.kind != 2)
        die("WELCOME");
    int fds[3];
    memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fds);
    region = map(fds[0], welcome.region_bytes, PROT_READ);
    slot = map(fds[1], welcome.slot_bytes, PROT_READ | PROT_WRITE);
    doorbell = fds[2];
    if (memcmp((void *)region, "viotlb\0\1", 8) || region[1] != 2 || region[2] != 1)
        die("the region's header");
    table_base = region[3];
}

/* The entry at a physical address; 0, which is not present, outside of the region. */
static uint64_t load(uint64_t at)
{
    uint64_t offset = at - table_base;
    if (at < table_base || offset >= welcome.region_bytes)
        return 0;
    uint64_t entry = atomic_load_explicit(&region[offset / 8], memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    return entry;
}

#define ADDRESS 0x000ffffffffff000u
#define NOWHERE UINT64_MAX

/* VT-d: root, context (scalable mode), PASID directory, PASID entry. 0 if nothing is attached. */
static uint64_t second_level_root(int *levels)
{
    uint64_t bus = welcome.endpoint >> 8 & 0xff, devfn = welcome.endpoint & 0xff;
    uint64_t half = load(welcome.root + bus * 16 + (devfn >> 7) * 8);
    uint64_t context_at = (half & ADDRESS) + (devfn & 0x7f) * 32;
    uint64_t context = load(context_at), rid_pasid = load(context_at + 8) & 0xfffff;
    uint64_t leaf = load((context & ADDRESS) + (rid_pasid >> 6) * 8);
    uint64_t entry = load((leaf & ADDRESS) + (rid_pasid & 63) * 64);
    *levels = 2 + (entry >> 2 & 7);
    int present = half & context & leaf & entry & 1;
    return present && (entry >> 6 & 7) == 2 ? entry & ADDRESS : 0;
}

static uint64_t translate(uint64_t iova)
{
    int levels;
    uint64_t table = second_level_root(&levels);
    for (int level = levels - 1; table && level >= 0; level--) {
        int size_lg2 = 12 + 9 * level;
        uint64_t entry = load(table + (iova >> size_lg2 & 511) * 8);
        if (!(entry & 1))
            return NOWHERE;
        if (level == 0 || entry & 0x80) {
            uint64_t below = (1ull << size_lg2) - 1;
            return (entry & ADDRESS & ~below) | (iova & below);
        }
        table = entry & ADDRESS;
    }
    return NOWHERE;
}

/* The section: reader slot 0. */
static void enter(void)
{
    uint64_t seen = 1;
    for (;;) {
        atomic_store_explicit(&slot[0x1000 / 8], seen, memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst);
        uint64_t now = atomic_load_explicit(&region[0x40 / 8], memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
        if ((uint32_t)atomic_load_explicit(&slot[0], memory_order_acquire) == 0) {
            atomic_store_explicit(&slot[0x1000 / 8], now, memory_order_release);
            return;
        }
        atomic_store_explicit(&slot[0x1000 / 8], 0, memory_order_release);
        usleep(1000);
    }
}

static void leave(void)
{
    atomic_store_explicit(&slot[0x1000 / 8], 0, memory_order_release);
}

/* A fault record: a read that no mapping allowed. */
static void report(uint64_t iova)
{
    uint64_t put = atomic_load_explicit(&slot[0x80 / 8], memory_order_relaxed);
    if (put - atomic_load_explicit(&slot[0x40 / 8], memory_order_acquire) >= 256)
        return;
    word *record = &slot[0x4000 / 8 + put % 256 * 4];
    const uint64_t words[4] = { iova, 0, 1 | 2 << 8, 0 };
    for (int n = 0; n < 4; n++)
        atomic_store_explicit(&record[n], words[n], memory_order_relaxed);
    atomic_store_explicit(&slot[0x80 / 8], put + 1, memory_order_release);
    const uint64_t one = 1;
    if (write(doorbell, &one, sizeof one) != sizeof one)
        die("doorbell");
}

int main(int count, char **arguments)
{
    if (count < 2)
        return 2;
    join(arguments[1]);
    atomic_fetch_or_explicit(&slot[0x90 / 8], 1, memory_order_acquire);
    for (int n = 2; n < count; n++) {
        uint64_t iova = strtoull(arguments[n], NULL, 0);
        enter();
        uint64_t found = translate(iova);
        leave();
        if (found == NOWHERE) {
            report(iova);
            puts("fault");
        } else {
            printf("%#llx\n", (unsigned long long)found);
        }
    }
    atomic_fetch_and_explicit(&slot[0x90 / 8], ~1ull, memory_order_release);
    /* the daemon takes the records before it forgets us; the end of the process is the end of the connection */
    return 0;
}
