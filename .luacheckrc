-- The scripts run in the server's sandbox: Lua 5.1, these globals, and `index` from the included index.lua.
std = "lua51"
read_globals = { "redis", "cmsgpack", "struct", "bit", "KEYS", "ARGV", "index" }
max_line_length = 120
