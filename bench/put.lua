-- put.lua: wrk script. Each request is a PUT of an entry under a fresh random UUID.
-- Arguments: API key, series id. The last line of the output is JSON.

local seed = io.open('/dev/urandom', 'rb')
local a, b, c = string.byte(seed:read(3), 1, 3)
math.randomseed(a * 65536 + b * 256 + c)

local path, headers
local body = '{"meta":{"country":"AE","type":"invoice","series":"SAMPLE","code":"001","issue_date":"2022-02-01",'
  .. '"currency":"AED","supplier":"Provide One LLC","customer":"Sample Consumer","payable":"1795.50"}}'

function init(arguments)
  headers = { Authorization = 'Bearer ' .. arguments[1], ['Content-Type'] = 'application/json' }
  path = '/sequence/v1/series/' .. arguments[2] .. '/entries/'
end

function request()
  local id = string.format('%08x-%04x-4%03x-8%03x-%06x%06x', math.random(0, 2147483647), math.random(0, 65535),
    math.random(0, 4095), math.random(0, 4095), math.random(0, 16777215), math.random(0, 16777215))
  return wrk.format('PUT', path .. id, headers, body)
end

function done(summary, latency)
  io.write(string.format('{"requests": %d, "per_s": %.1f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d}\n',
    summary.requests, summary.requests / summary.duration * 1e6, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
      + summary.errors.timeout))
end
