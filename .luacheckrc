-- The scripts run in the server's sandbox: Lua 5.1, these globals, and what index.lua and series.lua bring.
std = "lua51"
read_globals = { "redis", "cmsgpack", "struct", "bit", "KEYS", "ARGV", "index", "series" }
max_line_length = 120
