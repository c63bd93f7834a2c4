/* The order of everything here is by global row and expert id, never by arrival, so that results do
 * not depend on P or on the transport. */
#include "dist/exchange.h"

#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* A growable block of bytes that is reused from layer to layer. */
struct buffer {
    void *data;
    size_t cap;
};

struct qep_exchange {
    struct qep_comm *comm;
    const struct qep_placement *placement;
    int32_t hidden_size, top_k;
    size_t *send_bytes, *send_offset, *recv_bytes, *recv_offset; /* [num_ranks] */
    int32_t *send_counts, *recv_counts, *cursor;                 /* [num_ranks] */

    const struct qep_exchange_rows *rows; /* of the dispatch under way */
    int32_t layer;
    size_t row_bytes, stride;
    int32_t num_recv;
    struct buffer send, recv, partials, moved;
    struct buffer row_of_recv; /* i32 [num_rows]: received packet of a row, or -1 */
    struct buffer row_order;   /* i32 [num_rows]: received rows, by destination, then row */
    struct buffer item_of;     /* i32 [num_recv * k]: item of a packet's j-th expert, or -1 */
    struct buffer expert_begin;
    struct buffer next_base, next_ids; /* rows of owner(l + 1): f32 [n, H], i32 [n, k] */
    struct buffer item_arrays[3], item_leaves[3], sum_leaves[3];
    struct qep_exchange_items items;
    struct qep_exchange_sums sums;
    uint64_t bytes_sent, bytes_received;
};

static enum qep_status reserve(struct buffer *b, size_t count, size_t size) {
    return qep_grow(&b->data, &b->cap, count * size + 64, 1, "expert exchange");
}

static size_t packet_bytes(size_t row_bytes, int32_t top_k) {
    return (row_bytes + 8 * (size_t)top_k + 4 + 15) / 16 * 16;
}

static const int32_t *packet_idx(const struct qep_exchange *ex, int32_t packet) {
    const char *p = (const char *)ex->recv.data + (size_t)packet * ex->stride + ex->row_bytes;
    return (const int32_t *)(const void *)p;
}

static const float *packet_weights(const struct qep_exchange *ex, int32_t packet) {
    return (const float *)(const void *)(packet_idx(ex, packet) + ex->top_k);
}

static int32_t packet_row(const struct qep_exchange *ex, int32_t packet) {
    return packet_idx(ex, packet)[2 * ex->top_k];
}

enum qep_status qep_exchange_create(struct qep_comm *comm, const struct qep_placement *placement,
                                    int32_t hidden_size, int32_t top_k, struct qep_exchange **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof(struct qep_exchange), "expert exchange", &mem));
    struct qep_exchange *ex = mem;
    size_t p = (size_t)comm->num_ranks;
    ex->comm = comm;
    ex->placement = placement;
    ex->hidden_size = hidden_size;
    ex->top_k = top_k;
    size_t *sizes = calloc(4 * p, sizeof *sizes);
    int32_t *counts = calloc(3 * p, sizeof *counts);
    ex->send_bytes = sizes;
    ex->send_counts = counts;
    if (sizes == NULL || counts == NULL) {
        qep_exchange_destroy(ex);
        return qep_fail(QEP_ERR_SYSTEM, "expert exchange: out of memory");
    }
    ex->send_offset = sizes + p;
    ex->recv_bytes = sizes + 2 * p;
    ex->recv_offset = sizes + 3 * p;
    ex->recv_counts = counts + p;
    ex->cursor = counts + 2 * p;
    *out = ex;
    return QEP_OK;
}

void qep_exchange_destroy(struct qep_exchange *ex) {
    if (ex == NULL)
        return;
    free(ex->send_bytes);
    free(ex->send_counts);
    struct buffer *all[] = {&ex->send,        &ex->recv,      &ex->partials, &ex->moved,
                            &ex->row_of_recv, &ex->row_order, &ex->item_of,  &ex->expert_begin,
                            &ex->next_base,   &ex->next_ids};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]->data);
    for (int i = 0; i < 3; i++) {
        free(ex->item_arrays[i].data);
        free(ex->item_leaves[i].data);
        free(ex->sum_leaves[i].data);
    }
    free(ex);
}

static int row_owner(const struct qep_exchange *ex, const struct qep_exchange_rows *rows,
                     int32_t layer, int32_t row) {
    return qep_owner(ex->placement, layer, rows->row_slot[row]);
}

int32_t qep_exchange_num_local(const struct qep_exchange *ex, const struct qep_exchange_rows *rows,
                               int32_t layer) {
    int32_t n = 0;
    for (int32_t g = 0; g < rows->num_rows; g++)
        n += row_owner(ex, rows, layer, g) == ex->comm->rank;
    return n;
}

/* Every rank finds the same answer, so all take part in the move or none does. */
static bool any_row_moves(const struct qep_exchange *ex, const struct qep_exchange_rows *rows,
                          int32_t layer) {
    for (int32_t g = 0; g < rows->num_rows; g++)
        if (row_owner(ex, rows, layer, g) != row_owner(ex, rows, layer + 1, g))
            return true;
    return false;
}

static bool holds_experts(const struct qep_exchange *ex, int rank) {
    return ex->placement->experts[rank].begin < ex->placement->experts[rank].end;
}

/* Fills offsets from byte counts; returns the total. */
static size_t lay_out(const size_t *bytes, size_t *offset, int num_ranks) {
    size_t total = 0;
    for (int p = 0; p < num_ranks; p++) {
        offset[p] = total;
        total += bytes[p];
    }
    return total;
}

static enum qep_status transfer(struct qep_exchange *ex, const void *send, void *recv) {
    for (int p = 0; p < ex->comm->num_ranks; p++) {
        if (p == ex->comm->rank)
            continue;
        ex->bytes_sent += ex->send_bytes[p];
        ex->bytes_received += ex->recv_bytes[p];
    }
    return ex->comm->ops->alltoallv(ex->comm, send, ex->send_bytes, ex->send_offset, recv,
                                    ex->recv_bytes, ex->recv_offset);
}

/* Does local row i go to rank p? Each destination is asked for once, at the row's first expert
 * there. */
static bool first_expert_there(const struct qep_exchange *ex, const int32_t *idx, int32_t j) {
    const int32_t *rank = ex->placement->expert_rank;
    for (int32_t i = 0; i < j; i++)
        if (rank[idx[i]] == rank[idx[j]])
            return false;
    return true;
}

static void count_packets(struct qep_exchange *ex, int32_t num_local, const int32_t *topk_idx) {
    int num_ranks = ex->comm->num_ranks;
    memset(ex->send_counts, 0, (size_t)num_ranks * sizeof *ex->send_counts);
    if (ex->rows->decode) {
        for (int p = 0; p < num_ranks; p++)
            ex->send_counts[p] = holds_experts(ex, p) ? num_local : 0;
        return;
    }
    for (int32_t i = 0; i < num_local; i++) {
        const int32_t *idx = topk_idx + (size_t)i * (size_t)ex->top_k;
        for (int32_t j = 0; j < ex->top_k; j++)
            if (first_expert_there(ex, idx, j))
                ex->send_counts[ex->placement->expert_rank[idx[j]]]++;
    }
}

static enum qep_status exchange_counts(struct qep_exchange *ex) {
    int num_ranks = ex->comm->num_ranks;
    if (ex->rows->decode) {
        memset(ex->recv_counts, 0, (size_t)num_ranks * sizeof *ex->recv_counts);
        if (holds_experts(ex, ex->comm->rank))
            for (int32_t g = 0; g < ex->rows->num_rows; g++)
                ex->recv_counts[row_owner(ex, ex->rows, ex->layer, g)]++;
        return QEP_OK;
    }
    for (int p = 0; p < num_ranks; p++) {
        ex->send_bytes[p] = ex->recv_bytes[p] = sizeof(int32_t);
        ex->send_offset[p] = ex->recv_offset[p] = (size_t)p * sizeof(int32_t);
    }
    return transfer(ex, ex->send_counts, ex->recv_counts);
}

static void write_packet(struct qep_exchange *ex, char *at, const void *act, const int32_t *idx,
                         const float *weights, int32_t row) {
    size_t k = (size_t)ex->top_k;
    memcpy(at, act, ex->row_bytes);
    at += ex->row_bytes;
    memcpy(at, idx, k * sizeof *idx);
    memcpy(at + k * 4, weights, k * sizeof *weights);
    memcpy(at + k * 8, &row, sizeof row);
    memset(at + k * 8 + 4, 0, ex->stride - ex->row_bytes - k * 8 - 4);
}

/* Sending side: packets lie by destination, in row order. */
static void pack(struct qep_exchange *ex, const char *act, const int32_t *topk_idx,
                 const float *topk_weights) {
    int num_ranks = ex->comm->num_ranks;
    char *send = ex->send.data;
    size_t k = (size_t)ex->top_k;
    memset(ex->cursor, 0, (size_t)num_ranks * sizeof *ex->cursor);
    int32_t i = 0;
    for (int32_t g = 0; g < ex->rows->num_rows; g++) {
        if (row_owner(ex, ex->rows, ex->layer, g) != ex->comm->rank)
            continue;
        const int32_t *idx = topk_idx + (size_t)i * k;
        const float *weights = topk_weights + (size_t)i * k;
        const char *row = act + (size_t)i * ex->row_bytes;
        for (int32_t j = 0; j < ex->top_k && !ex->rows->decode; j++) {
            int p = ex->placement->expert_rank[idx[j]];
            if (first_expert_there(ex, idx, j))
                write_packet(ex, send + ex->send_offset[p] + (size_t)ex->cursor[p]++ * ex->stride,
                             row, idx, weights, g);
        }
        for (int p = 0; p < num_ranks && ex->rows->decode; p++)
            if (holds_experts(ex, p))
                write_packet(ex, send + ex->send_offset[p] + (size_t)ex->cursor[p]++ * ex->stride,
                             row, idx, weights, g);
        i++;
    }
}

static enum qep_status send_packets(struct qep_exchange *ex, const void *act,
                                    const int32_t *topk_idx, const float *topk_weights) {
    int num_ranks = ex->comm->num_ranks;
    int32_t num_local = qep_exchange_num_local(ex, ex->rows, ex->layer);
    count_packets(ex, num_local, topk_idx);
    QEP_TRY(exchange_counts(ex));
    ex->num_recv = 0;
    for (int p = 0; p < num_ranks; p++) {
        ex->send_bytes[p] = (size_t)ex->send_counts[p] * ex->stride;
        ex->recv_bytes[p] = (size_t)ex->recv_counts[p] * ex->stride;
        ex->num_recv += ex->recv_counts[p];
    }
    QEP_TRY(reserve(&ex->send, lay_out(ex->send_bytes, ex->send_offset, num_ranks), 1));
    QEP_TRY(reserve(&ex->recv, lay_out(ex->recv_bytes, ex->recv_offset, num_ranks), 1));
    pack(ex, act, topk_idx, topk_weights);
    return transfer(ex, ex->send.data, ex->recv.data);
}

/* Moves rows of `bytes` each from owner(layer) to owner(layer + 1); out gets this rank's next rows
 * in order. */
static enum qep_status move_rows(struct qep_exchange *ex, const struct qep_exchange_rows *rows,
                                 int32_t layer, size_t bytes, const char *in, char *out) {
    int num_ranks = ex->comm->num_ranks, me = ex->comm->rank;
    memset(ex->send_bytes, 0, (size_t)num_ranks * sizeof(size_t));
    memset(ex->recv_bytes, 0, (size_t)num_ranks * sizeof(size_t));
    for (int32_t g = 0; g < rows->num_rows; g++) {
        int src = row_owner(ex, rows, layer, g), dst = row_owner(ex, rows, layer + 1, g);
        if (src == me)
            ex->send_bytes[dst] += bytes;
        if (dst == me)
            ex->recv_bytes[src] += bytes;
    }
    QEP_TRY(reserve(&ex->send, lay_out(ex->send_bytes, ex->send_offset, num_ranks), 1));
    QEP_TRY(reserve(&ex->moved, lay_out(ex->recv_bytes, ex->recv_offset, num_ranks), 1));
    memset(ex->cursor, 0, (size_t)num_ranks * sizeof *ex->cursor);
    for (int32_t g = 0; g < rows->num_rows; g++) {
        if (row_owner(ex, rows, layer, g) != me)
            continue;
        int dst = row_owner(ex, rows, layer + 1, g);
        size_t at = ex->send_offset[dst] + (size_t)ex->cursor[dst]++ * bytes;
        memcpy((char *)ex->send.data + at, in, bytes);
        in += bytes;
    }
    QEP_TRY(transfer(ex, ex->send.data, ex->moved.data));
    memset(ex->cursor, 0, (size_t)num_ranks * sizeof *ex->cursor);
    for (int32_t g = 0; g < rows->num_rows; g++) {
        if (row_owner(ex, rows, layer + 1, g) != me)
            continue;
        int src = row_owner(ex, rows, layer, g);
        size_t at = ex->recv_offset[src] + (size_t)ex->cursor[src]++ * bytes;
        memcpy(out, (const char *)ex->moved.data + at, bytes);
        out += bytes;
    }
    return QEP_OK;
}

/* Brings base rows and expert ids to owner(layer + 1). */
static enum qep_status move_base(struct qep_exchange *ex, const int32_t *topk_idx,
                                 const float *base) {
    size_t base_bytes = (size_t)ex->hidden_size * 4, ids_bytes = (size_t)ex->top_k * 4;
    int32_t next = qep_exchange_num_local(ex, ex->rows, ex->layer + 1);
    QEP_TRY(reserve(&ex->next_base, (size_t)next, base_bytes));
    QEP_TRY(reserve(&ex->next_ids, (size_t)next, ids_bytes));
    ex->sums.num_rows = next;
    ex->sums.base = ex->next_base.data;
    if (!any_row_moves(ex, ex->rows, ex->layer)) {
        if (next > 0) {
            memcpy(ex->next_base.data, base, (size_t)next * base_bytes);
            memcpy(ex->next_ids.data, topk_idx, (size_t)next * ids_bytes);
        }
        return QEP_OK;
    }
    QEP_TRY(move_rows(ex, ex->rows, ex->layer, base_bytes, (const char *)base, ex->next_base.data));
    return move_rows(ex, ex->rows, ex->layer, ids_bytes, (const char *)topk_idx, ex->next_ids.data);
}

/* Counting sort of (packet, expert) pairs by local expert; packets ascend within an expert. */
static enum qep_status sort_items(struct qep_exchange *ex) {
    struct qep_range mine = ex->placement->experts[ex->comm->rank];
    size_t num_local = (size_t)(mine.end - mine.begin), k = (size_t)ex->top_k;
    size_t max_items = (size_t)ex->num_recv * k;
    for (int i = 0; i < 3; i++)
        QEP_TRY(reserve(&ex->item_arrays[i], max_items, 4));
    QEP_TRY(reserve(&ex->item_of, max_items, 4));
    QEP_TRY(reserve(&ex->expert_begin, num_local + 1, 4));
    int32_t *begin = ex->expert_begin.data, *item_of = ex->item_of.data;
    struct qep_exchange_items *items = &ex->items;
    items->item_expert = ex->item_arrays[0].data;
    items->item_row = ex->item_arrays[1].data;
    items->item_weight = ex->item_arrays[2].data;
    memset(begin, 0, (num_local + 1) * sizeof *begin);
    for (int32_t r = 0; r < ex->num_recv; r++)
        for (size_t j = 0; j < k; j++) {
            int32_t e = packet_idx(ex, r)[j];
            assert(e >= 0 && e < ex->placement->num_experts);
            if (e >= mine.begin && e < mine.end)
                begin[e - mine.begin + 1]++;
        }
    for (size_t e = 0; e < num_local; e++)
        begin[e + 1] += begin[e];
    items->num_items = begin[num_local];
    for (int32_t r = 0; r < ex->num_recv; r++)
        for (size_t j = 0; j < k; j++) {
            int32_t e = packet_idx(ex, r)[j];
            item_of[(size_t)r * k + j] = -1;
            if (e < mine.begin || e >= mine.end)
                continue;
            int32_t at = begin[e - mine.begin]++;
            items->item_expert[at] = e - mine.begin;
            items->item_row[at] = r;
            items->item_weight[at] = packet_weights(ex, r)[j];
            item_of[(size_t)r * k + j] = at;
        }
    return QEP_OK;
}

/* Received rows by destination, then by row; fills send_counts with rows per destination. */
static enum qep_status order_rows(struct qep_exchange *ex) {
    int32_t n = ex->rows->num_rows;
    QEP_TRY(reserve(&ex->row_of_recv, (size_t)n, 4));
    QEP_TRY(reserve(&ex->row_order, (size_t)n, 4));
    int32_t *packet_of = ex->row_of_recv.data, *order = ex->row_order.data;
    for (int32_t g = 0; g < n; g++)
        packet_of[g] = -1;
    for (int32_t r = 0; r < ex->num_recv; r++)
        packet_of[packet_row(ex, r)] = r;
    memset(ex->cursor, 0, (size_t)ex->comm->num_ranks * sizeof *ex->cursor);
    for (int32_t g = 0; g < n; g++)
        if (packet_of[g] >= 0)
            ex->cursor[row_owner(ex, ex->rows, ex->layer + 1, g)]++;
    int32_t total = 0;
    for (int p = 0; p < ex->comm->num_ranks; p++) {
        int32_t count = ex->cursor[p];
        ex->cursor[p] = total;
        total += count;
    }
    for (int32_t g = 0; g < n; g++)
        if (packet_of[g] >= 0)
            order[ex->cursor[row_owner(ex, ex->rows, ex->layer + 1, g)]++] = g;
    assert(total == ex->num_recv);
    return QEP_OK;
}

/* order[0..k): indices of idx in ascending order of expert id (k is small). */
static void sort_by_expert(const int32_t *idx, int32_t k, int32_t *order) {
    for (int32_t i = 0; i < k; i++) {
        int32_t at = i;
        for (; at > 0 && idx[order[at - 1]] > idx[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
}

/* One output for each (row, dyadic range of this rank) with a chosen expert. */
static enum qep_status plan_partials(struct qep_exchange *ex) {
    size_t k = (size_t)ex->top_k, max_leaves = (size_t)ex->num_recv * k;
    for (int i = 0; i < 3; i++)
        QEP_TRY(reserve(&ex->item_leaves[i], max_leaves + 1, 4));
    struct qep_exchange_items *items = &ex->items;
    items->leaf_begin = ex->item_leaves[0].data;
    items->leaf_row = ex->item_leaves[1].data;
    items->leaf_id = ex->item_leaves[2].data;
    const int32_t *packet_of = ex->row_of_recv.data, *order = ex->row_order.data;
    const int32_t *item_of = ex->item_of.data;
    int32_t by_expert[QEP_MAX_EXPERTS], num_leaves = 0, num_out = 0;
    memset(ex->send_counts, 0, (size_t)ex->comm->num_ranks * sizeof *ex->send_counts);
    for (int32_t i = 0; i < ex->num_recv; i++) {
        int32_t g = order[i], r = packet_of[g], dyadic = -1;
        const int32_t *idx = packet_idx(ex, r);
        sort_by_expert(idx, ex->top_k, by_expert);
        for (size_t j = 0; j < k; j++) {
            int32_t e = idx[by_expert[j]], item = item_of[(size_t)r * k + (size_t)by_expert[j]];
            if (item < 0)
                continue;
            if (ex->placement->expert_dyadic[e] != dyadic) {
                dyadic = ex->placement->expert_dyadic[e];
                items->leaf_begin[num_out++] = num_leaves;
                ex->send_counts[row_owner(ex, ex->rows, ex->layer + 1, g)]++;
            }
            items->leaf_row[num_leaves] = item;
            items->leaf_id[num_leaves++] = e;
        }
    }
    items->leaf_begin[num_out] = num_leaves;
    items->num_partials = num_out;
    return QEP_OK;
}

enum qep_status qep_exchange_dispatch(struct qep_exchange *ex, const struct qep_exchange_rows *rows,
                                      int32_t layer, const void *act, size_t row_bytes,
                                      const int32_t *topk_idx, const float *topk_weights,
                                      const float *base, const void **recv_rows,
                                      size_t *recv_stride, int32_t *num_recv,
                                      const struct qep_exchange_items **items) {
    assert(row_bytes % 16 == 0);
    ex->rows = rows;
    ex->layer = layer;
    ex->row_bytes = row_bytes;
    ex->stride = packet_bytes(row_bytes, ex->top_k);
    QEP_TRY(send_packets(ex, act, topk_idx, topk_weights));
    QEP_TRY(move_base(ex, topk_idx, base));
    QEP_TRY(sort_items(ex));
    QEP_TRY(order_rows(ex));
    QEP_TRY(plan_partials(ex));
    *recv_rows = ex->recv.data;
    *recv_stride = ex->stride;
    *num_recv = ex->num_recv;
    *items = &ex->items;
    return QEP_OK;
}

/* Walks the dyadic ranges that hold an expert of next row o, ascending; calls visit for each. */
typedef void visit_fn(struct qep_exchange *ex, int rank, int32_t dyadic);

static void for_each_range(struct qep_exchange *ex, int32_t o, visit_fn *visit) {
    const int32_t *ids = (const int32_t *)ex->next_ids.data + (size_t)o * (size_t)ex->top_k;
    int32_t by_expert[QEP_MAX_EXPERTS], dyadic = -1;
    sort_by_expert(ids, ex->top_k, by_expert);
    for (int32_t j = 0; j < ex->top_k; j++) {
        int32_t e = ids[by_expert[j]];
        if (ex->placement->expert_dyadic[e] == dyadic)
            continue;
        dyadic = ex->placement->expert_dyadic[e];
        visit(ex, ex->placement->expert_rank[e], dyadic);
    }
}

static void count_partial(struct qep_exchange *ex, int rank, int32_t dyadic) {
    (void)dyadic;
    ex->recv_counts[rank]++;
}

static void place_leaf(struct qep_exchange *ex, int rank, int32_t dyadic) {
    const struct qep_dyadic *node = &ex->placement->dyadic[dyadic];
    int32_t at = ex->sums.num_partials++;
    ex->sums.leaf_row[at] = ex->cursor[rank]++;
    ex->sums.leaf_id[at] = node->index << node->level;
}

static enum qep_status plan_sums(struct qep_exchange *ex) {
    struct qep_exchange_sums *sums = &ex->sums;
    size_t max_leaves = (size_t)sums->num_rows * (size_t)ex->top_k;
    QEP_TRY(reserve(&ex->sum_leaves[0], (size_t)sums->num_rows + 1, 4));
    QEP_TRY(reserve(&ex->sum_leaves[1], max_leaves, 4));
    QEP_TRY(reserve(&ex->sum_leaves[2], max_leaves, 4));
    sums->leaf_begin = ex->sum_leaves[0].data;
    sums->leaf_row = ex->sum_leaves[1].data;
    sums->leaf_id = ex->sum_leaves[2].data;
    int32_t first = 0;
    for (int p = 0; p < ex->comm->num_ranks; p++) {
        ex->cursor[p] = first;
        first += ex->recv_counts[p];
    }
    sums->num_partials = 0;
    for (int32_t o = 0; o < sums->num_rows; o++) {
        sums->leaf_begin[o] = sums->num_partials;
        for_each_range(ex, o, place_leaf);
    }
    sums->leaf_begin[sums->num_rows] = sums->num_partials;
    assert(sums->num_partials == first);
    return QEP_OK;
}

enum qep_status qep_exchange_combine(struct qep_exchange *ex, const float *partials,
                                     const struct qep_exchange_sums **sums) {
    int num_ranks = ex->comm->num_ranks;
    size_t bytes = (size_t)ex->hidden_size * 4;
    memset(ex->recv_counts, 0, (size_t)num_ranks * sizeof *ex->recv_counts);
    for (int32_t o = 0; o < ex->sums.num_rows; o++)
        for_each_range(ex, o, count_partial);
    QEP_TRY(plan_sums(ex));
    for (int p = 0; p < num_ranks; p++) {
        ex->send_bytes[p] = (size_t)ex->send_counts[p] * bytes;
        ex->recv_bytes[p] = (size_t)ex->recv_counts[p] * bytes;
    }
    lay_out(ex->send_bytes, ex->send_offset, num_ranks);
    QEP_TRY(reserve(&ex->partials, lay_out(ex->recv_bytes, ex->recv_offset, num_ranks), 1));
    QEP_TRY(transfer(ex, partials, ex->partials.data));
    ex->sums.partials = ex->partials.data;
    *sums = &ex->sums;
    return QEP_OK;
}

enum qep_status qep_exchange_move(struct qep_exchange *ex, const struct qep_exchange_rows *rows,
                                  int32_t layer, const float *rows_in, const float **rows_out,
                                  int32_t *num_out) {
    size_t bytes = (size_t)ex->hidden_size * 4;
    *num_out = qep_exchange_num_local(ex, rows, layer + 1);
    *rows_out = rows_in;
    /* A rank without rows would run ahead to the head and wait there for whole layers of others: a
     * long step would look like a stall to its watchdog. */
    if (!any_row_moves(ex, rows, layer))
        return rows->decode ? QEP_OK : qep_comm_barrier(ex->comm);
    QEP_TRY(reserve(&ex->next_base, (size_t)*num_out, bytes));
    QEP_TRY(move_rows(ex, rows, layer, bytes, (const char *)rows_in, ex->next_base.data));
    *rows_out = ex->next_base.data;
    return QEP_OK;
}

void qep_exchange_bytes(const struct qep_exchange *ex, uint64_t *sent, uint64_t *received) {
    *sent = ex->bytes_sent;
    *received = ex->bytes_received;
}
