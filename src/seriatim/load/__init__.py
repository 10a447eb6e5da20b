"""The load-testing harness: it speaks HTTP only, and audits afterwards what it was told.

options      what `seriatim load` is asked to do
payloads     the documents that it asks numbers for
operations   the kinds of requests: new, replay, batch, list
wire         one keep-alive connection, driven by hand
pace         when requests are due
engine       sends them, and sends them again
book         what one process was told, 36 bytes an entry; findings
children     the processes that send, and prove receipts afterwards
proof        whether entries are what their receipts say
target       the service: its series, its pages, its keys; blocking calls
ledger       what all processes were told, by series and position
audit        whether the service holds what it told
figures      rates and latencies, second by second
summary      what comes out, for machines and people
page, plots  ... as HTML
harness      all of it, one after the other
"""
