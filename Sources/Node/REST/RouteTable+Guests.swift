import API
import Foundation
import HTTPTypes

// Virtual machines.

extension RouteTable {
    static func guests(_ services: NodeServices) -> [Route] {
        let directory = services.guests.directory
        return [
            Route(
                method: .get, path: "/v1/guests", operation: "listGuests",
                summary: "Guests that lie on volumes, and those that only snapshots still hold; agents are asked now.",
                access: .administrator, answer: answer(200, "The guests, by name.", .array(.named("GuestInfo")))
            ) { _ in try .value(try await directory.guests()) },
            Route(
                method: .get, path: "/v1/guests/{nameOrUUID}", operation: "getGuest",
                summary: "One guest with all snapshots that hold it.", access: .administrator,
                answer: answer(200, "The guest.", .named("GuestInfo")),
                failures: [404: "guestNotFound", 409: "guestAmbiguous"]
            ) { request in try .value(try await directory.guest(try request.parameter("nameOrUUID"))) },
            Route(
                method: .post, path: "/v1/guests/restores", operation: "restoreGuests",
                summary: "Restores guests in place or one beside the original, and leaves others alone.",
                access: .administrator, body: "GuestRestoreRequest",
                answer: answer(202, "The job; its result has a GuestRestoreResult for each guest.", .named("JobInfo")),
                failures: [400: "badRequest"]
            ) { request in
                let body = try request.decode(GuestRestoreRequest.self, knownFields: fields("GuestRestoreRequest"))
                return try .value(try await services.submitGuestRestore(body), status: 202)
            },
        ]
    }
}
