# SPDX-License-Identifier: GPL-2.0-only
# Keeps the options in .config ($2) that Kconfig ($1) declares. If an option appears twice, the last
# one wins, as with `make olddefconfig`.
awk 'NR == FNR { if ($1 == "config") known["CONFIG_" $2] = 1; next }
     match($0, /CONFIG_[A-Z0-9_]+/) { name = substr($0, RSTART, RLENGTH)
                                      if (name in known) line[name] = $0 }
     END { for (name in line) print line[name] }' "$1" "$2" | sort > "$2.new"
mv "$2.new" "$2"
