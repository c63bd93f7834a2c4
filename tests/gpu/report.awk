# Tables from the results of tests/gpu_suite.sh; see report.sh. Plain awk: bare machines have no more.

# Predictions, for a short context, q4, one GPU: estimates from compiled code and shapes, made before
# anything had run on a device.
function predict(card, test, h100, h200) {
    predicted["H100", test] = h100
    predicted["H200", test] = h200
}
BEGIN {
    predict("", "tg 1", 320, 340)
    predict("", "tg 8", 1800, 2000)
    predict("", "tg 32", 3400, 3900)
    predict("", "pp512", 13000, 13500)
    predict("", "pp4096", 20000, 21000)
    predicted_launches = 607
    predicted_gap = "1.0 to 1.5"
    predicted_idle = 70
    far = 1.5 # a factor that is worth a mark
}

# ---- reading ----

function text_of(line, key,    at) {
    if (!match(line, "\"" key "\": \"[^\"]*\"")) return ""
    at = length(key) + 5
    return substr(line, RSTART + at, RLENGTH - at - 1)
}
function number_of(line, key,    at) {
    if (!match(line, "\"" key "\": -?[0-9.e+]+")) return ""
    at = length(key) + 4
    return substr(line, RSTART + at, RLENGTH - at) + 0
}
function list_of(line, key,    at, s) {
    if (!match(line, "\"" key "\": \\[[^]]*\\]")) return ""
    at = length(key) + 5
    s = substr(line, RSTART + at, RLENGTH - at - 1)
    gsub(/[ ,]+/, " ", s)
    return s
}
# Quoted fields of a CSV line to cells[1..n].
function split_csv(line, cells,    n, i, c, quoted, cell) {
    n = 0; cell = ""; quoted = 0
    for (i = 1; i <= length(line); i++) {
        c = substr(line, i, 1)
        if (c == "\"") quoted = !quoted
        else if (c == "," && !quoted) { cells[++n] = cell; cell = "" }
        else cell = cell c
    }
    cells[++n] = cell
    return n
}
function dims(s) { # "(768, 1, 1)" -> "768 1 1"
    gsub(/[(),]/, " ", s); gsub(/ +/, " ", s); gsub(/^ | $/, "", s)
    return s
}
function plain(s) { gsub(/,/, "", s); return s + 0 }
# A metric of the row at hand, in ns, bytes or as it is.
function metric(name,    u) {
    u = unit[column[name]]
    return plain(cell[column[name]]) * (u ~ /^(us|usecond|Kbyte)$/ ? 1e3 : u ~ /^(ms|msecond|Mbyte)$/ ? 1e6 : u ~ /^(s|second|Gbyte)$/ ? 1e9 : 1)
}
function function_of(s) {
    sub(/^void /, "", s); gsub(/\(anonymous namespace\)::|<unnamed>::/, "", s)
    sub(/[<(].*/, "", s); sub(/.*::/, "", s)
    return s
}
function part_of(path) { sub(/.*\//, "", path); sub(/[.-](launches|ncu\.csv)$/, "", path); return path }

# kernels[part, k]: name|grid|block, in order of appearance; sums by that key.
function kernel_key(part, name, grid, block,    key) {
    key = name "|" grid "|" block
    if (!((part, key) in seen)) { seen[part, key] = ++num_kernels[part]; kernels[part, num_kernels[part]] = key }
    return key
}

FNR == 1 { file = FILENAME; sub(/.*\//, "", file) }
file == "card" { card = $0; next }
file == "model.txt" { model = $0; next }
file ~ /\.layers$/ { from = file; sub(/\.layers$/, "", from); layers[from] = $0; next }
file == "commit" { commit = $0; next }
file == "peaks.json" {
    if (number_of($0, "copy_gb_s") != "") {
        copy = number_of($0, "copy_gb_s"); mma = number_of($0, "mma_tflop_s"); device = text_of($0, "device")
    }
    next
}
file ~ /\.jsonl$/ {
    from = file; sub(/\.jsonl$/, "", from)
    n = ++num_rows[from]
    test[from, n] = text_of($0, "test"); batch[from, n] = number_of($0, "batch"); depth[from, n] = number_of($0, "depth")
    rate[from, n] = number_of($0, "tok_s"); sd[from, n] = number_of($0, "sd"); bytes[from, n] = number_of($0, "step_bytes")
    load[from, n] = number_of($0, "load_gb_s"); load_s[from, n] = number_of($0, "load_s")
    next
}
file ~ /\.launches$/ {
    part = part_of(file)
    key = kernel_key(part, text_of($0, "kernel"), list_of($0, "grid"), list_of($0, "block"))
    count[part, key]++; us[part, key] += number_of($0, "us")
    launches[part]++; all_us[part] += number_of($0, "us")
    next
}
file ~ /-ncu\.csv$/ {
    if ($0 !~ /^"/) next # what ncu says beside its table
    part = part_of(file)
    n = split_csv($0, cell)
    if (cell[1] == "ID") { for (i = 1; i <= n; i++) column[cell[i]] = i; next }
    if (cell[1] == "") { for (i = 1; i <= n; i++) unit[i] = cell[i]; next }
    key = kernel_key(part, function_of(cell[column["Kernel Name"]]), dims(cell[column["Grid Size"]]), dims(cell[column["Block Size"]]))
    ncu_count[part, key]++; ncu_launches[part]++
    t = 1e-3 * metric("gpu__time_duration.sum")
    ncu_us[part, key] += t; ncu_all_us[part] += t
    ncu_bytes[part, key] += metric("dram__bytes_read.sum") + metric("dram__bytes_write.sum")
    ncu_inst[part, key] += metric("smsp__inst_executed.sum")
    next
}

# ---- what they mean ----

function floor_of(from, n) { # tok/s that memory allows; 0: none known
    return bytes[from, n] > 0 && copy > 0 ? batch[from, n] * 1e9 * copy / bytes[from, n] : 0
}
function cannot_be(from, n,    f) {
    f = floor_of(from, n)
    return f > 0 && rate[from, n] > f
}
function prediction(from, n,    which, name) {
    which = card device
    which = which ~ /H200/ ? "H200" : which ~ /H100/ ? "H100" : ""
    name = test[from, n] ~ /^tg/ ? (depth[from, n] == 0 ? "tg " batch[from, n] : "") : test[from, n]
    return (which, name) in predicted ? predicted[which, name] : ""
}
function against(value, want,    r) {
    if (want == "" || value <= 0) return "|"
    r = value / want
    return want " | " sprintf(r > far || r < 1 / far ? "**%.2f**" : "%.2f", r)
}
function rows_of(from,    n, f) {
    for (n = 1; n <= num_rows[from]; n++) {
        f = floor_of(from, n)
        printf "| %s | %d | %d | %.1f ± %.1f | %s | %s | %s |\n", test[from, n], batch[from, n], depth[from, n],
            rate[from, n], sd[from, n], (f > 0 ? sprintf("%.0f", f) : ""), (f > 0 ? sprintf("%.0f %%", 100 * rate[from, n] / f) : ""),
            against(rate[from, n], prediction(from, n))
    }
}
function impossible(from, mark,    n, found) {
    for (n = 1; n <= num_rows[from]; n++)
        if (cannot_be(from, n)) {
            printf "%s%s, %d sequences: %.1f tok/s are more than memory allows (%.0f): work is missing\n", mark,
                test[from, n], batch[from, n], rate[from, n], floor_of(from, n)
            found = 1
        }
    return found + 0
}
function step_us(    n) { # a decode step of one sequence, as users get it
    for (n = 1; n <= num_rows["graphs-on"]; n++)
        if (batch["graphs-on", n] == 1) return 1e6 / rate["graphs-on", n]
    for (n = 1; n <= num_rows["model"]; n++)
        if (test["model", n] ~ /^tg/ && batch["model", n] == 1) return 1e6 / rate["model", n]
    return 0
}
function row_us(part, key) { return ncu_count[part, key] > 0 ? ncu_us[part, key] : us[part, key] }
function kernel_table(part, title,    n, i, j, k, order, key, name, total, c) {
    n = num_kernels[part]
    if (n == 0) return
    printf "\n## %s%s\n\n", title, (layers[part] != "" ? ", " layers[part] : "")
    for (i = 1; i <= n; i++) { # by time, insertion
        for (j = i - 1; j > 0 && row_us(part, kernels[part, order[j]]) < row_us(part, kernels[part, i]); j--) order[j + 1] = order[j]
        order[j + 1] = i
        total += row_us(part, kernels[part, i])
    }
    if (!ncu_launches[part])
        print "ncu gave nothing here: times are from events around launches, gaps included.\n"
    print "| kernel | grid | block | launches | us in all | share | us each | by events | MB each | GB/s | of copies | warp instructions each |"
    print "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |"
    for (i = 1; i <= n; i++) {
        key = kernels[part, order[i]]; split(key, name, "|")
        c = ncu_count[part, key] > 0 ? ncu_count[part, key] : count[part, key]
        printf "| %s | %s | %s | %d | %.1f | %.1f %% | %.2f | %s | ", name[1], name[2], name[3], c, row_us(part, key),
            (total > 0 ? 100 * row_us(part, key) / total : 0), row_us(part, key) / c, (count[part, key] > 0 ? sprintf("%.2f", us[part, key] / count[part, key]) : "")
        if (ncu_us[part, key] > 0) {
            k = 1e-3 * ncu_bytes[part, key] / ncu_us[part, key]
            printf "%.3f | %.0f | %s | %.0f |\n", 1e-6 * ncu_bytes[part, key] / c, k, (copy > 0 ? sprintf("%.0f %%", 100 * k / copy) : ""), ncu_inst[part, key] / c
        } else print " | | | |"
    }
}
function decode_gap(    step, n, sum) {
    step = layers["decode"] == "" ? step_us() : 0; n = launches["decode"]
    if (n == 0) return
    printf "\n%d launches a step (predicted %d). ", n, predicted_launches
    if (step == 0) { print "No decode speed of this many layers to compare with."; return }
    printf "A step takes %.0f us", step
    if (ncu_launches["decode"] == n) {
        sum = ncu_all_us["decode"]
        printf ", its kernels %.0f us by ncu: a gap of %.2f us a launch (predicted %s), if ncu adds nothing to kernels of 1 or 2 us", sum, (step - sum) / n, predicted_gap
    } else if (ncu_launches["decode"] > 0)
        printf "; ncu saw %d launches instead", ncu_launches["decode"]
    else printf "; issued op by op, gaps included, its launches take %.0f us by events", all_us["decode"]
    for (n = 1; n <= num_rows["model"]; n++)
        if (test["model", n] ~ /^tg/ && batch["model", n] == 1 && floor_of("model", n) > 0)
            printf "; memory needs %.0f us of it, %.0f %% is something else (predicted %d)", 1e6 / floor_of("model", n),
                100 * (1 - 1e6 / floor_of("model", n) / step), predicted_idle
    print "."
}

END {
    if (check == "graphs") exit (impossible("graphs-on", "FAILED: ") + impossible("graphs-off", "FAILED: ") > 0)
    if (check != "") exit impossible(check, "FAILED: ")
    printf "# %s, commit %s\n\n", (card != "" ? card : device != "" ? device : "unknown card"), commit
    if (copy > 0) printf "Copies on the device: %.0f GB/s, read and write; mma.sync bf16: %.0f TFLOP/s.\n\n", copy, mma
    if (num_rows["model"] + num_rows["depth"] > 0) {
        printf "## %s\n\n", model
        print "The floor is what reading a step's bytes at the speed of copies allows; predictions were estimates; a factor of more than 1.5 is marked.\n"
        print "| test | sequences | depth | tok/s | floor | share | predicted | measured / predicted |"
        print "| --- | --: | --: | --: | --: | --: | --: | --: |"
        rows_of("model"); rows_of("depth")
        impossible("model", "\n**ERROR** "); impossible("depth", "\n**ERROR** ")
    }
    if (num_rows["graphs-on"] > 0 && num_rows["graphs-off"] > 0) {
        print "\n## CUDA graphs\n\n| sequences | on, tok/s | off, tok/s | on / off |\n| --: | --: | --: | --: |"
        for (n = 1; n <= num_rows["graphs-on"]; n++)
            if (rate["graphs-off", n] > 0)
                printf "| %d | %.1f | %.1f | %.2f |\n", batch["graphs-on", n], rate["graphs-on", n], rate["graphs-off", n], rate["graphs-on", n] / rate["graphs-off", n]
        impossible("graphs-on", "\n**ERROR** "); impossible("graphs-off", "\n**ERROR** ")
    }
    kernel_table("decode", "One decode step of one sequence, by kernel")
    decode_gap()
    kernel_table("prefill", "A prefill of 4096, by kernel")
    if (num_rows["model"] > 0) printf "\nRandom weights came in at %.2f GB/s.\n", load["model", 1]
    if (num_rows["files"] > 0) printf "\nLoading four layers from files: %.2f s, %.2f GB/s.\n", load_s["files", 1], load["files", 1]
}
