-- The scripts run in the server's sandbox: Lua 5.1, these globals, and what index.lua, series.lua and note.lua bring.
std = "lua51"
read_globals = { "redis", "cmsgpack", "struct", "bit", "KEYS", "ARGV", "index", "series", "note" }
max_line_length = 120
