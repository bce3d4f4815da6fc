import API
import HTTPTypes

// The pool.

extension RouteTable {
    static func pool(_ services: NodeServices) -> [Route] {
        [
            Route(
                method: .get, path: "/v1/pool", operation: "getPool",
                summary: "The pool: space, state, superblock copies, memory, the last scrub, and what needs a look.",
                access: .administrator, answer: answer(200, "The pool.", .named("PoolInfo"))
            ) { _ in try .value(try await services.poolInfo()) },
            Route(
                method: .post, path: "/v1/pool/scrub", operation: "scrubPool",
                summary: "Reads everything that the pool refers to and compares it with its checksums.",
                access: .administrator, body: "ScrubRequest",
                answer: answer(202, "The job; its result is a ScrubInfo.", .named("JobInfo")),
                failures: [409: "scrubRunning"]
            ) { request in
                let body = try request.decode(ScrubRequest.self, knownFields: fields("ScrubRequest"))
                return try .value(try await services.scrubbing.submit(body, jobs: services.jobs), status: 202)
            },
            Route(
                method: .delete, path: "/v1/pool/scrub", operation: "cancelScrub",
                summary: "Ends the scrub that runs; the next one goes on from there.", access: .administrator,
                answer: noContent, failures: [409: "noScrub"]
            ) { _ in
                try services.scrubbing.cancel()
                return .empty
            },
            Route(
                method: .post, path: "/v1/pool/grow", operation: "growPool",
                summary: "Makes the pool larger while it is in use.", access: .administrator, body: "PoolGrowRequest",
                answer: answer(200, "The pool.", .named("PoolInfo")), failures: [400: "invalidRequest"]
            ) { request in
                let body = try request.decode(PoolGrowRequest.self, knownFields: fields("PoolGrowRequest"))
                return try .value(try await services.growPool(body))
            },
        ]
    }
}
