"""The load-testing harness: it speaks HTTP only, and audits afterwards what it was told.

options    what `seriatim load` is asked to do
book       what was told: 36 bytes an entry in the process that sent it, then all by series; findings
requests   the kinds of requests: what each sends, and what its answer must be
sender     sends them when they are due, and again where the outcome is unknown
children   the processes that send, and afterwards prove receipts
target     the service, asked one thing at a time: its series, pages, keys
audit      whether the service holds what it told
figures    rates and latencies, second by second
report     what comes out, for machines, for people, and as a page with plots
harness    all of it, one after the other

Each imports only what stands above it.
"""
