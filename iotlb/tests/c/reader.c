/*
 * A device process written from docs/iotlb-abi.md, the VT-d specification and the SMMUv3 and Arm manuals alone: if
 * it works, the page says enough. It translates reads, untagged and with a PASID, through tables in the region.
 *
 * usage: reader SOCKET [PASID:]IOVA...   prints, for each, the address that it leads to, or "fault" and tells the daemon.
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

enum architecture { VTD = 1, SMMUV3 = 2 };
enum class { UNKNOWN = 0, NOT_ATTACHED = 1, MAPPING = 2 };

static struct welcome welcome;
static int doorbell;
static word *region, *slot;
static uint64_t table_base;
static enum architecture architecture;

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
    ssize_t got = recvmsg(socket_fd, &message, 0);
    if (got == 16 && welcome.kind == 3) {
        fprintf(stderr, "refused: the daemon has version %u, reason %u\n", welcome.version, welcome.endpoint);
        exit(3);
    }
    if (got != sizeof welcome || welcome.kind != 2 || welcome.version != 2)
        die("WELCOME");
    int fds[3];
    memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fds);
    region = map(fds[0], welcome.region_bytes, PROT_READ);
    slot = map(fds[1], welcome.slot_bytes, PROT_READ | PROT_WRITE);
    doorbell = fds[2];
    if (memcmp((void *)region, "viotlb\0\1", 8) || region[1] != 2 || (region[2] != VTD && region[2] != SMMUV3))
        die("the region's header");
    architecture = (enum architecture)region[2];
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
#define ARM_ADDRESS 0x0000fffffffff000u

/* Bits first..first + bits of a word. */
static uint64_t field(uint64_t word, int first, int bits)
{
    return word >> first & ((1ull << bits) - 1);
}

/* Where accesses go. */
struct route {
    enum { REFUSED, PASSED_THROUGH, VTD_SECOND, ARM_STAGE1, ARM_STAGE2 } kind;
    uint64_t root;
    int input_bits, levels;
};

static const struct route refused = { REFUSED, 0, 0, 0 };
static const struct route passed_through = { PASSED_THROUGH, 0, 0, 0 };

/* VT-d: root, context (scalable mode), PASID directory, PASID entry. PASID 0 is an untagged access. */
static struct route vtd_route(uint64_t pasid)
{
    uint64_t bus = welcome.endpoint >> 8 & 0xff, devfn = welcome.endpoint & 0xff;
    uint64_t half = load(welcome.root + bus * 16 + (devfn >> 7) * 8);
    uint64_t context_at = (half & ADDRESS) + (devfn & 0x7f) * 32;
    uint64_t context = load(context_at);
    if (!(half & context & 1) || (pasid && !(context & 8)))
        return refused;
    uint64_t index = pasid ? pasid : load(context_at + 8) & 0xfffff;
    if (index >> 6 >> (field(context, 9, 3) + 7))
        return refused;
    uint64_t leaf = load((context & ADDRESS) + (index >> 6) * 8);
    uint64_t entry = leaf & 1 ? load((leaf & ADDRESS) + (index & 63) * 64) : 0;
    int levels = 2 + (int)field(entry, 2, 3);
    if (!(entry & 1))
        return refused;
    switch (field(entry, 6, 3)) {
    case 2:
        return (struct route){ VTD_SECOND, entry & ADDRESS, 12 + 9 * levels, levels };
    case 4:
        return passed_through;
    default: /* a table of the guest's: this reader has no guest memory */
        return refused;
    }
}

/* Levels of a table with pages of 4 KiB. */
static int levels_of(int input_bits)
{
    return (input_bits - 12 + 8) / 9;
}

/* SMMUv3: the context descriptor of a PASID, or of untagged accesses. */
static struct route context_route(uint64_t entry, uint64_t index)
{
    uint64_t contexts = entry & 0x000fffffffffffc0u, format = field(entry, 4, 2);
    uint64_t at = contexts + index * 64;
    if (index >> (entry >> 59))
        return refused;
    if (format == 1) { /* pointers to leaves of 4 KiB */
        uint64_t pointer = load(contexts + (index >> 6) * 8);
        if (!(pointer & 1))
            return refused;
        at = (pointer & ADDRESS) + (index & 63) * 64;
    } else if (format == 2) {
        return refused; /* leaves of 64 KiB: the daemon makes none */
    }
    uint64_t descriptor = load(at), root = load(at + 8) & 0x000ffffffffffff0u;
    /* V; no lower table; a granule that is not 4 KiB; a table of the guest's */
    if (!(descriptor >> 31 & 1) || descriptor >> 14 & 1 || field(descriptor, 6, 2) || root < table_base)
        return refused;
    int input_bits = 64 - (int)field(descriptor, 0, 6);
    return (struct route){ ARM_STAGE1, root, input_bits, levels_of(input_bits) };
}

/* SMMUv3: the stream table entry, and what it says of the access. */
static struct route smmu_route(uint64_t pasid)
{
    uint64_t stream = welcome.endpoint & 0xffff, config = welcome.root_config;
    uint64_t at = welcome.root + stream * 64;
    if (stream >> field(config, 0, 6))
        return refused;
    if (field(config, 16, 2) == 1) { /* two levels */
        int split = (int)field(config, 6, 5);
        uint64_t pointer = load(welcome.root + (stream >> split) * 8);
        uint64_t within = stream & ((1u << split) - 1);
        if (!(pointer & 31) || within >> (field(pointer, 0, 5) - 1))
            return refused;
        at = (pointer & 0x000fffffffffffc0u) + within * 64;
    }
    uint64_t entry = load(at), untagged = load(at + 8) & 3;
    struct route second = passed_through;
    if (!(entry & 1) || !(field(entry, 1, 3) & 4))
        return refused;
    int stage1 = field(entry, 1, 3) & 1, stage2 = field(entry, 1, 3) >> 1 & 1;
    if (stage2) {
        uint64_t control = load(at + 16) >> 32;
        int start = 2 - (int)field(control, 6, 2); /* S2SL0: 2 begins at level 0 */
        second = (struct route){ ARM_STAGE2, load(at + 24) & 0x000ffffffffffff0u, 64 - (int)field(control, 0, 6), 4 - start };
    }
    if (pasid || (stage1 && untagged == 2))
        /* beside a stage 2, tables of stage 1 are the guest's */
        return stage1 && !stage2 ? context_route(entry, pasid) : refused;
    return stage1 && untagged == 0 ? refused : second;
}

/* True if an entry of level `level` (0: pages) is a page, or a table; `*page` says which. */
static int is_valid(const struct route *route, uint64_t entry, int level, int *page)
{
    if (route->kind == VTD_SECOND) {
        *page = level == 0 || entry & 0x80;
        return entry & 1;
    }
    *page = level == 0 || !(entry & 2);
    if (!(entry & 1) || (level == 0 && !(entry & 2)))
        return 0;
    if (!*page) /* APTable */
        return route->kind == ARM_STAGE2 || !(entry >> 61 & 1);
    /* AF; stage 1: AP[1], accesses that are not privileged; stage 2: S2AP[0], reads */
    return (entry >> 10 & 1) && (entry >> 6 & 1);
}

#define NOWHERE UINT64_MAX

static uint64_t walk(const struct route *route, uint64_t iova)
{
    uint64_t table = route->root, address = route->kind == VTD_SECOND ? ADDRESS : ARM_ADDRESS;
    if (iova >> route->input_bits)
        return NOWHERE;
    for (int level = route->levels - 1; level >= 0; level--) {
        int size_lg2 = 12 + 9 * level, page;
        uint64_t entry = load(table + (iova >> size_lg2 & 511) * 8);
        if (!is_valid(route, entry, level, &page))
            return NOWHERE;
        if (page) {
            uint64_t below = (1ull << size_lg2) - 1;
            return (entry & address & ~below) | (iova & below);
        }
        table = entry & address;
    }
    return NOWHERE;
}

/* Where a read leads, or NOWHERE and why. */
static uint64_t translate(uint64_t pasid, uint64_t iova, enum class *why)
{
    struct route route = architecture == VTD ? vtd_route(pasid) : smmu_route(pasid);
    *why = NOT_ATTACHED;
    if (route.kind == REFUSED)
        return NOWHERE;
    *why = route.kind == PASSED_THROUGH ? UNKNOWN : MAPPING;
    uint64_t found = route.kind == PASSED_THROUGH ? iova : walk(&route, iova);
    return found >= table_base ? NOWHERE : found;
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

/* A fault record: a read that was refused. */
static void report(uint64_t pasid, uint64_t iova, enum class why)
{
    uint64_t put = atomic_load_explicit(&slot[0x80 / 8], memory_order_relaxed);
    if (put - atomic_load_explicit(&slot[0x40 / 8], memory_order_acquire) >= 256)
        return;
    word *record = &slot[0x4000 / 8 + put % 256 * 4];
    const uint64_t words[4] = { iova, pasid, 1 | (uint64_t)why << 8, 0 };
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
        const char *colon = strchr(arguments[n], ':');
        uint64_t pasid = colon ? strtoull(arguments[n], NULL, 0) : 0;
        uint64_t iova = strtoull(colon ? colon + 1 : arguments[n], NULL, 0);
        enum class why;
        enter();
        uint64_t found = translate(pasid, iova, &why);
        leave();
        if (found == NOWHERE) {
            report(pasid, iova, why);
            puts("fault");
        } else {
            printf("%#llx\n", (unsigned long long)found);
        }
    }
    atomic_fetch_and_explicit(&slot[0x90 / 8], ~1ull, memory_order_release);
    /* the daemon takes the records before it forgets us; the end of the process is the end of the connection */
    return 0;
}
