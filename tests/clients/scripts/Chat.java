import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Java's own HTTP client with its defaults: it offers an upgrade to HTTP/2 with each request. */
class Chat {
    public static void main(String[] arguments) throws Exception {
        String body = "{\"model\": \"" + arguments[2]
            + "\", \"messages\": [{\"role\": \"user\", \"content\": \"Say hello.\"}]}";
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + "/v1/chat/completions"))
            .header("Authorization", "Bearer " + arguments[1])
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        HttpClient client = HttpClient.newHttpClient();
        // Twice: the second request takes the connection of the first.
        client.send(request, HttpResponse.BodyHandlers.ofString());
        HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println("[" + answer.statusCode() + ", " + answer.body() + "]");
    }
}
